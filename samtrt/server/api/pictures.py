"""The API's routes about pictures and masks."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse

from samtrt.server import schemas
from samtrt.server.api.uploads import FIELD, FORM, OCTETS, uploaded
from samtrt.server.model.lanes import unless_disconnected
from samtrt.server.model.studio import KeptPicture, Studio
from samtrt.server.page.delivery import unless_known
from samtrt.server.problems import RequestError, documented
from samtrt.server.settings import PICTURE_TYPES

BAD_BODY = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
BUSY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
LINES = "application/x-ndjson"
BINARY = {"schema": {"type": "string", "format": "binary"}}


def picture_routes(studio: Studio) -> APIRouter:
    """The routes for one model, by their paths below the version's."""
    routes = APIRouter(tags=["model"])

    async def find(embedding_id: str) -> KeptPicture:
        picture = await studio.find(embedding_id)
        if picture is None:
            raise RequestError(
                HTTPStatus.NOT_FOUND,
                "no embedding of that id is kept (any more); send the picture to /embed again",
            )
        return picture

    @routes.post(
        "/embed",
        responses=documented(*BAD_BODY, *BUSY),
        openapi_extra={
            "requestBody": {
                "description": f"The picture's file. `{FORM}` is taken, too, with the file as "
                f"its only part, `{FIELD}`.",
                "required": True,
                # Without the form: of two sorts of bodies openapi-python-client (0.29) makes code
                # that does not import.
                "content": dict.fromkeys((*PICTURE_TYPES, OCTETS), BINARY),
            }
        },
    )
    async def embed(request: Request) -> schemas.Embedding:
        """Runs the image encoder on a picture, or finds it in the cache."""
        data, media_type = await uploaded(request)
        embedding_id, picture, cached = await studio.embed(data, media_type)
        return schemas.Embedding(
            id=embedding_id,
            original_size=list(picture.embedded.original_size),
            input_size=list(picture.embedded.input_size),
            frame_size=studio.sam.img_size,
            embedding_shape=list(picture.embedded.features.shape),
            cached=cached,
            seconds=picture.seconds,
        )

    @routes.get(
        "/embed/{embedding_id}",
        response_class=Response,
        responses={
            200: {
                "description": "Little-endian numbers of the shape that `/embed` answered.",
                "content": {"application/octet-stream": BINARY},
            },
            304: {"description": "The client has it: its ETag is among If-None-Match."},
            **documented(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
        },
    )
    async def get_embedding(
        embedding_id: Annotated[schemas.EmbeddingId, PathParameter()],
        request: Request,
        dtype: Annotated[schemas.EmbeddingType, Query()] = "float32",
    ) -> Response:
        """The embedding itself, for a mask decoder that runs elsewhere.

        In float16 half as much is sent; numbers beyond its range are clipped.
        """
        features = (await find(embedding_id)).embedded.features.numpy()
        if dtype == "float16":
            limit = np.finfo(np.float16).max
            features = features.clip(-limit, limit)
        data = features.astype(f"<f{4 if dtype == 'float32' else 2}", copy=False).tobytes()
        headers = {
            "Cache-Control": "private, max-age=3600, immutable",
            "ETag": f'"{embedding_id}-{dtype}"',
        }
        response = Response(data, headers=headers, media_type="application/octet-stream")
        return unless_known(request, response)

    @routes.post(
        "/masks",
        response_model=schemas.Masks,
        responses=documented(HTTPStatus.NOT_FOUND, *BAD_BODY, *BUSY),
    )
    async def masks(request: schemas.MaskRequest) -> dict[str, Any]:
        """Runs the mask decoder for one prompt, or for several at once."""
        picture = (await find(request.id)).embedded
        return {"masks": await studio.masks(picture, request)}

    @routes.post(
        "/everything",
        response_model=schemas.CocoDataset,
        responses={
            200: {
                "description": f"The masks. With `Accept: {LINES}`: an `EverythingEvent` a line, "
                "as they are found.",
                "content": {
                    LINES: {"schema": {"$ref": "#/components/schemas/EverythingEvent"}},
                },
            },
            **documented(HTTPStatus.NOT_FOUND, *BAD_BODY, *BUSY),
        },
    )
    async def everything(request: schemas.EverythingRequest, connection: Request) -> Any:
        """Segments whatever is in the picture, as a COCO data set."""
        picture = (await find(request.id)).embedded
        if LINES in connection.headers.get("accept", ""):
            return await _lines(studio.everything.as_found(picture, request), connection)
        return await unless_disconnected(connection, studio.everything.dataset(picture, request))

    return routes


async def _lines(
    events: AsyncGenerator[dict[str, Any], None], connection: Request
) -> StreamingResponse:
    """One JSON value a line. What fails before the first is raised, after it said in the last."""

    async def next_event() -> dict[str, Any]:
        return await anext(events)

    first = await unless_disconnected(connection, next_event())

    async def lines() -> AsyncIterator[bytes]:
        event = first
        try:
            while True:
                yield json.dumps(event, allow_nan=False).encode() + b"\n"
                event = await next_event()
        except StopAsyncIteration:
            pass
        except RequestError as problem:
            yield problem.line()
        finally:
            await events.aclose()  # the client may have left

    # A proxy shall not collect the lines.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), headers=headers, media_type=LINES)

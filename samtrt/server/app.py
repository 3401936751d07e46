"""The ASGI application: routes, their documentation, their errors."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

import samtrt.server
from samtrt.errors import InputError
from samtrt.sam import Sam
from samtrt.server import schemas
from samtrt.server.assets import STATIC
from samtrt.server.guard.middleware import Guard
from samtrt.server.guard.stopping import Stopping
from samtrt.server.metrics import Metrics
from samtrt.server.model.lanes import unless_disconnected
from samtrt.server.model.studio import KeptPicture, Studio
from samtrt.server.page.delivery import file_as_it_is, unless_known
from samtrt.server.page.routes import add_page
from samtrt.server.pictures import check_type
from samtrt.server.problems import RequestError, documented
from samtrt.server.settings import PICTURE_TYPES, Settings

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


def create_app(
    sam: Sam,
    page_decoder: Path | None = None,
    sample: Path | None = None,
    settings: Settings | None = None,
    note: str = "",
) -> FastAPI:
    """The application for one model.

    Args:
        sam: the model.
        page_decoder: folder of the same model's ``export_browser_decoder``, for the page;
            without it there is the API and no page.
        sample: a picture that the page offers to try, or None.
        settings: limits; None for the defaults.
        note: what a user must know of the model (``EngineInfo.note``).
    """
    settings = settings or Settings()
    metrics = Metrics()
    studio = Studio(sam, settings, metrics)
    stopping = Stopping()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        studio.read_picture.start()
        yield
        await studio.close()

    app = FastAPI(
        title="samtrt",
        summary="Segment Anything over HTTP.",
        description=samtrt.server.__doc__ or "",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both pages load their scripts from a CDN
        redoc_url=None,
    )
    app.state.studio = studio
    app.state.settings = settings
    app.state.stopping = stopping
    app.add_middleware(Guard, settings=settings, metrics=metrics, stopping=stopping)
    _add_error_handlers(app)
    _add_model_routes(app, studio)
    _add_operation_routes(app, studio, sample, page_decoder, note)
    if page_decoder is not None:
        add_page(app, STATIC, page_decoder)
    _document_problems(app)
    return app


def _add_model_routes(app: FastAPI, studio: Studio) -> None:
    def find(embedding_id: str) -> KeptPicture:
        picture = studio.cache.get(embedding_id)
        if picture is None:
            raise RequestError(
                HTTPStatus.NOT_FOUND,
                "no embedding of that id is kept (any more); send the picture to /embed again",
            )
        return picture

    @app.post(
        "/embed",
        tags=["model"],
        responses=documented(*BAD_BODY, *BUSY),
        openapi_extra={
            "requestBody": {
                "description": "The picture's file.",
                "required": True,
                "content": dict.fromkeys(PICTURE_TYPES, BINARY),
            }
        },
    )
    async def embed(request: Request) -> schemas.Embedding:
        """Runs the image encoder on a picture, or finds it in the cache."""
        media_type = check_type(request.headers.get("content-type"))
        embedding_id, picture, cached = await studio.embed(await request.body(), media_type)
        return schemas.Embedding(
            id=embedding_id,
            original_size=list(picture.embedded.original_size),
            input_size=list(picture.embedded.input_size),
            frame_size=studio.sam.img_size,
            embedding_shape=list(picture.embedded.features.shape),
            cached=cached,
            seconds=picture.seconds,
        )

    @app.get(
        "/embed/{embedding_id}",
        tags=["model"],
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
        features = find(embedding_id).embedded.features.numpy()
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

    @app.post(
        "/masks",
        tags=["model"],
        response_model=schemas.Masks,
        responses=documented(HTTPStatus.NOT_FOUND, *BAD_BODY, *BUSY),
    )
    async def masks(request: schemas.MaskRequest) -> dict[str, Any]:
        """Runs the mask decoder for one object's prompt."""
        return {"masks": await studio.masks(find(request.id).embedded, request)}

    @app.post(
        "/everything",
        tags=["model"],
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
        picture = find(request.id).embedded
        if LINES in connection.headers.get("accept", ""):
            return await _lines(studio.everything.as_found(picture, request), connection)
        return await unless_disconnected(connection, studio.everything.dataset(picture, request))


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
            yield b'{"problem": ' + bytes(problem.response().body) + b"}\n"
        finally:
            await events.aclose()  # the client may have left

    # A proxy shall not collect the lines.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), headers=headers, media_type=LINES)


def _add_operation_routes(
    app: FastAPI, studio: Studio, sample: Path | None, page_decoder: Path | None, note: str
) -> None:
    settings = studio.settings

    @app.get("/health", tags=["operation"])
    async def health() -> schemas.Health:
        """Whether the server works, its queues and its limits."""
        return schemas.Health(
            status="ok",
            note=note,
            device=str(studio.sam.device),
            frame_size=studio.sam.img_size,
            sample=sample is not None,
            page=page_decoder is not None,
            embed_seconds=studio.embed_seconds,
            cached_embeddings=len(studio.cache),
            lanes={
                name: schemas.Lane(pending=lane.pending, capacity=lane.capacity)
                for name, lane in studio.lanes.items()
            },
            max_upload_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
        )

    @app.get("/ready", tags=["operation"], responses=documented(HTTPStatus.SERVICE_UNAVAILABLE))
    async def ready() -> schemas.Ready:
        """Whether requests are answered: the encoder works, and the server is not ending."""
        if not studio.works:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the image encoder fails on every picture; its log has the reason, start it again",
            )
        return schemas.Ready(status="ready")

    if settings.metrics:
        _add_metrics(app, studio.metrics)

    if sample is not None:

        async def get_sample(request: Request) -> Response:
            return file_as_it_is(request, sample)

        app.add_route("/sample", get_sample, ["GET"], include_in_schema=False)


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def get_metrics() -> Response:
        """Counters, histograms and gauges for Prometheus."""
        text = generate_latest(metrics.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def on_problem(_: Request, problem: RequestError) -> Response:
        return problem.response()

    @app.exception_handler(InputError)
    async def on_input_error(_: Request, error: InputError) -> Response:
        return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)).response()

    @app.exception_handler(HTTPException)
    async def on_http_exception(_: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        details = {
            HTTPStatus.BAD_REQUEST: "the body is not JSON in UTF-8",
            HTTPStatus.NOT_FOUND: "there is nothing under this path; see /openapi.json",
            HTTPStatus.METHOD_NOT_ALLOWED: "this path does not take that method; see /openapi.json",
        }
        response = RequestError(status, details.get(status, f"{status.phrase}.")).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        reasons = [
            f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}"
            for item in error.errors()[:3]
        ]
        return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(reasons)).response()


def _document_problems(app: FastAPI) -> None:
    """Adds the schemas that no route names as its answer to the OpenAPI document."""
    document = app.openapi()
    reference = "#/components/schemas/{model}"
    for model in (schemas.ProblemDetails, schemas.EverythingEvent):
        described = model.model_json_schema(ref_template=reference)
        definitions = described.pop("$defs", {})
        document["components"]["schemas"] |= {**definitions, model.__name__: described}

"""The ASGI application: its parts, and what errors look like."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import samtrt.server
from samtrt.errors import InputError
from samtrt.sam import Sam
from samtrt.server.api.documentation import add_documentation
from samtrt.server.api.operation import add_operation
from samtrt.server.api.pictures import picture_routes
from samtrt.server.assets import STATIC
from samtrt.server.guard.middleware import VERSION, Guard, cross_origin
from samtrt.server.guard.stopping import Stopping
from samtrt.server.metrics import Metrics
from samtrt.server.model.store import Store
from samtrt.server.model.studio import Studio
from samtrt.server.page.routes import add_page
from samtrt.server.problems import RequestError
from samtrt.server.settings import Settings
from samtrt.server.tracing import Tracing


def create_app(
    sam: Sam,
    page_decoder: Path | None = None,
    sample: Path | None = None,
    settings: Settings | None = None,
    note: str = "",
    tracing: Tracing | None = None,
    store: Store | None = None,
) -> FastAPI:
    """The application for one model.

    Args:
        sam: the model.
        page_decoder: folder of the same model's ``export_browser_decoder``, for the page;
            without it there is the API and no page.
        sample: a picture that the page offers to try, or None.
        settings: limits; None for the defaults.
        note: what a user must know of the model (``EngineInfo.note``).
        tracing: makes spans of requests and work; None for nothing.
        store: has the embeddings of other servers, too; None for those of this one alone.
    """
    settings = settings or Settings()
    metrics = Metrics()
    tracing = tracing or Tracing()
    studio = Studio(sam, settings, metrics, tracing=tracing, store=store)
    stopping = Stopping()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        studio.read_picture.start()
        yield
        await studio.close()
        tracing.close()

    app = FastAPI(
        title="samtrt",
        summary="Segment Anything over HTTP.",
        description=samtrt.server.__doc__ or "",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both pages load their scripts from a CDN
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.studio = studio
    app.state.settings = settings
    app.state.stopping = stopping
    app.add_middleware(
        Guard, settings=settings, metrics=metrics, stopping=stopping, tracing=tracing
    )
    cross_origin(app, settings)
    _add_error_handlers(app)
    app.include_router(picture_routes(studio), prefix=VERSION)
    app.include_router(picture_routes(studio), include_in_schema=False)  # as they were before
    add_operation(app, studio, sample, page_decoder is not None, note)
    add_documentation(app)
    if page_decoder is not None:
        add_page(app, STATIC, page_decoder)
    return app


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
        if response.headers.get("allow") == "GET":
            response.headers["allow"] = "GET, HEAD"  # the guard answers it by GET
        return response

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        reasons = [
            f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}"
            for item in error.errors()[:3]
        ]
        return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(reasons)).response()

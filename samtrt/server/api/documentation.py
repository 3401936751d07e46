"""The API's description: the OpenAPI document, and a page that shows it.

The page is Swagger UI, of files that stand beside the click page's (``samtrt.server.assets``):
nothing is loaded from elsewhere.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from samtrt.server import schemas
from samtrt.server.assets import VENDOR
from samtrt.server.page.delivery import FRESH, MEDIA_TYPES, DeliveredFile
from samtrt.server.problems import RequestError

SCRIPT, STYLE, START = "swagger-ui-bundle.js", "swagger-ui.css", "start.js"
# Addresses are relative, so that they hold below any prefix.
PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>samtrt: HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/{STYLE}">
<div id="api"></div>
<script src="docs/{SCRIPT}"></script>
<script src="docs/{START}"></script>
</html>
"""
# As the click page, it takes the token of its address, which is not sent.
STARTING = """const token = new URLSearchParams(location.hash.slice(1)).get("token");
SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#api",
  requestInterceptor: (request) => {
    if (token) request.headers.Authorization = `Bearer ${token}`;
    return request;
  },
  validatorUrl: null,
  persistAuthorization: false,
});
"""


def add_documentation(app: FastAPI) -> None:
    """Completes the OpenAPI document and adds ``/docs``."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        if "securitySchemes" not in document["components"]:
            _complete(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    _add_page(app)


def _complete(document: dict[str, Any]) -> None:
    reference = "#/components/schemas/{model}"
    # What no route names as its answer.
    for model in (schemas.ProblemDetails, schemas.EverythingEvent):
        described = model.model_json_schema(ref_template=reference)
        definitions = described.pop("$defs", {})
        document["components"]["schemas"] |= {**definitions, model.__name__: described}
    document["components"]["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Where the server wants one: beyond the loopback, or where it has one.",
        }
    }
    document["security"] = [{}, {"token": []}]


def _add_page(app: FastAPI) -> None:
    made: dict[str, Any] = {START: DeliveredFile.of(STARTING.encode(), MEDIA_TYPES[".js"])}
    page = DeliveredFile.of(PAGE.encode(), MEDIA_TYPES[".html"])

    async def docs(request: Request) -> Response:
        if not (VENDOR / SCRIPT).is_file():
            raise RequestError(
                HTTPStatus.NOT_FOUND,
                "this page's files are not installed; run `python -m samtrt.server.assets` where "
                "the server is, or read /openapi.json",
            )
        return page.response(request, FRESH)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in made:
            path = VENDOR / name if name in (SCRIPT, STYLE) else None
            if path is None or not path.is_file():
                raise RequestError(HTTPStatus.NOT_FOUND, "the page has no such file")
            made[name] = DeliveredFile.at(path, MEDIA_TYPES[path.suffix])
        found: DeliveredFile = made[name]
        return found.response(request, FRESH)

    app.add_route("/docs", docs, ["GET"], include_in_schema=False)
    app.add_route("/docs/{name}", file, ["GET"], include_in_schema=False)

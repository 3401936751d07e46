"""The page's routes: its document, its files, its mask decoder."""

import re
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from samtrt.decoders.browser.contract import FILES
from samtrt.server.page.delivery import FRESH, MEDIA_TYPES, DeliveredFile, Folder


def add_page(app: FastAPI, static: Path, decoder: Path) -> None:
    """Adds the page.

    Args:
        app: the application.
        static: folder of the page's files.
        decoder: folder of ``export_browser_decoder``.
    """
    folder = Folder.below(static)
    graphs = Folder({name: decoder / name for name in FILES})
    html = _with_versions((static / "index.html").read_text("utf-8"), folder, graphs)
    document = DeliveredFile.of(html.encode(), MEDIA_TYPES[".html"])

    async def page(request: Request) -> Response:
        return document.response(request, FRESH)

    async def file(request: Request) -> Response:
        return folder.response(request)

    async def model(request: Request) -> Response:
        return graphs.response(request, "private, ")  # for those who have the token

    app.add_route("/", page, ["GET"], include_in_schema=False)
    app.add_route("/static/{path:path}", file, ["GET"], include_in_schema=False)
    app.add_route("/model/{path:path}", model, ["GET"], include_in_schema=False)


def _with_versions(html: str, folder: Folder, graphs: Folder) -> str:
    """The document with the addresses that are kept for ever.

    They are relative, as all of the page's are, so that it works below any path. Its modules are
    named, so that they are asked for at once and not as they import each other.
    """
    base = f"static/{folder.version}/"
    html = re.sub(r'\b(href|src)="static/', rf'\1="{base}', html)
    # Sizes too: of what is sent compressed, a browser is told the compressed size.
    graph_urls = " ".join(
        f"model/{graphs.version}/{name} {graphs.files[name].nbytes}" for name in FILES
    )
    head = f'\n  <meta name="mask-decoder" content="{graph_urls}">'
    for name in folder.files:
        if re.fullmatch(r"js/(?!.*worker).*\.js", name):
            head += f'\n  <link rel="modulepreload" href="{base}{name}">'
    return html.replace("</title>", f"</title>{head}", 1)

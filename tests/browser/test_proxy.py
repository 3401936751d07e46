"""The page below a prefix, with nginx before the server as docs/server.md sets it up."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from conftest import Page
from server_support import (
    encoded,
    free_port,
    nginx,
    picture,
    running,
    tiny_decoder,
    tiny_model,
)

from samtrt.sam import load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-sixteen-letters-or-more"


def documented_locations() -> str:
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs/server.md").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module", params=["kept", "taken away"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy's URL; the server's page is at /sam/."""
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "sample.png").write_bytes(encoded(picture(1)))
    settings = replace(Settings(), root_path="/sam", trusted_proxies=("127.0.0.1",), token=TOKEN)
    sam = load_sam(tiny_model() / "engine", tiny_model())
    app = create_app(sam, tiny_decoder(), sample=folder / "sample.png", settings=settings)
    with running(app) as server:
        # With a path after the server's address nginx puts it in the place of the location's.
        target = server if request.param == "kept" else f"{server}/"
        locations = documented_locations()
        assert locations.count("http://127.0.0.1:8000;") == 1
        port = free_port()
        text = locations.replace("http://127.0.0.1:8000", target)
        with nginx(folder, port, f"server {{\nlisten 127.0.0.1:{port};\n{text}\n}}"):
            yield f"http://127.0.0.1:{port}"


def test_the_page_below_a_prefix(make_page: Callable[..., Page], url: str) -> None:
    page = make_page(f"{url}/sam#token={TOKEN}")
    page.wait(lambda: page["try-sample"].is_displayed(), "what /health says")
    assert page.script("return location.href") == f"{url}/sam/"
    page["try-sample"].click()
    page.wait_for_picture()
    page.click(100, 75)
    assert page.script("return crossOriginIsolated")
    requested = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith((f"{url}/sam/", "blob:")) for name in requested), requested
    assert page.script("return document.querySelector('a.brand').href") == f"{url}/sam/"
    assert page.log() == []


def test_headers_and_limits_through_the_proxy(url: str) -> None:
    answer = httpx.get(f"{url}/sam/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
    etag = answer.headers["etag"]
    assert httpx.get(f"{url}/sam/", headers={"If-None-Match": etag}).status_code == 304
    assert httpx.get(f"{url}/sam/health").status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"{url}/sam/", headers=headers, timeout=60) as client:
        assert client.get("health").status_code == 200
        png = {"Content-Type": "image/png", "Origin": url}
        answer = client.post("embed", content=encoded(picture(1)), headers=png)
        assert answer.status_code == 200, answer.text
        large = client.post("embed", content=bytes(4 << 20), headers=png)
        assert large.status_code == 415, large.text  # the server's own word, not nginx's 413
        for origin in ("https://elsewhere.example", "null"):
            other = client.post("masks", json={}, headers={"Origin": origin})
            assert other.status_code == 403, origin

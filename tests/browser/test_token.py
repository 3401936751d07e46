"""The page of a server with a token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from conftest import Page
from server_support import encoded, picture, running, tiny_decoder, tiny_model

from samtrt.sam import load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

TOKEN = "a-token-with-~+/=-characters"


def test_the_address_carries_the_token(make_page: Callable[..., Page], tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(encoded(picture(1)))
    sam = load_sam(tiny_model() / "engine", tiny_model())
    app = create_app(sam, tiny_decoder(), sample=file, settings=replace(Settings(), token=TOKEN))
    with running(app) as url:
        page = make_page(f"{url}/#token={TOKEN}")
        page.wait(lambda: page["try-sample"].is_displayed(), "what /health says")
        assert page.script("return location.href") == f"{url}/"
        page["try-sample"].click()
        page.wait_for_picture()
        page.click(100, 75)
        page.driver.get(url)  # kept for the tab
        page.open(file)
        page.click(100, 75)
        assert page.log() == []

        stranger = make_page(url)
        stranger.wait_for_notice("token")
        stranger.wait_for_notice("address that the server has printed")

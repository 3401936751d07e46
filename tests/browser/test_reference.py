"""The API's description in a browser: under the page's policy, below any path."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from conftest import Page
from selenium.webdriver.common.by import By
from server_support import running, tiny_model

from samtrt.sam import load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

TOKEN = "a-token-of-sixteen-letters-or-more"


@pytest.fixture
def url() -> Iterator[str]:
    sam = load_sam(tiny_model() / "engine", tiny_model())
    with running(
        create_app(sam, settings=replace(Settings(), root_path="/sam", token=TOKEN))
    ) as url:
        yield f"{url}/sam"


def test_operations_are_shown(make_page: Callable[..., Page], url: str) -> None:
    page = make_page(f"{url}/docs#token={TOKEN}")

    def shown() -> list[str]:
        paths = "[...document.querySelectorAll('.opblock-summary-path')].map(e => e.dataset.path)"
        found: list[str] = page.script(f"return {paths}")
        return found

    page.wait(lambda: len(shown()) >= 7, "the operations")
    assert {"/v1/embed", "/v1/masks", "/v1/everything", "/ready"} <= set(shown())
    page.driver.find_element(By.ID, "operations-model-masks").click()
    page.wait(lambda: "prompts" in page.script("return document.body.innerText"), "a description")
    requested = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith((f"{url}/", "data:")) for name in requested), requested
    assert page.log() == []

"""Work in a browser: nothing is lost, folders, addresses, and everything as it is found."""

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Page, downloaded_masks
from fastapi import FastAPI
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server_support import encoded, picture

from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.sam import Sam


def name_of(page: Page) -> str:
    return page["picture-name"].text


def reopened(page: Page, count: int) -> None:
    page.wait(lambda: page["panel"].is_displayed() and page.count == count, "the masks")
    page.wait_for_picture()


def open_and_wait(page: Page, files: list[Path], name: str) -> None:
    page["file"].send_keys("\n".join(map(str, files)))
    page.wait(lambda: name_of(page) == name and not page["progress"].is_displayed(), name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("folder")
    paths = [folder / f"{number}.png" for number in (2, 10, 1)]
    for seed, path in enumerate(paths, start=20):
        path.write_bytes(encoded(picture(seed, 120, 160)))
    return paths


# Nothing is lost


def test_what_goes_wrong_leaves_the_picture_and_its_masks(page: Page, tmp_path: Path) -> None:
    text, wide = tmp_path / "notes.png", tmp_path / "wide.png"
    text.write_text("no picture")
    wide.write_bytes(encoded(np.zeros((1, 17_000, 3), np.uint8)))
    page.click(100, 80)
    before = downloaded_masks(page)
    for path, reason in ((text, "notes.png is not a picture"), (wide, "too many pixels")):
        page["file"].send_keys(str(path))
        page.wait_for_notice(reason)
        page.wait_for_notice("colours.png stays open.")
        assert name_of(page) == "colours.png" and page.count == 1
    page.click(300, 200)  # the decoder still has the picture
    assert (downloaded_masks(page)[0] == before[0]).all()


def test_masks_come_back(page: Page, url: str) -> None:
    page.click(100, 80)
    page.click(300, 200)
    before = downloaded_masks(page)
    page.wait_until_kept()

    page.driver.refresh()
    # The notice leaves by itself after a while.
    page.wait(lambda: re.search("2 masks of .* are back", page["notices"].text), "the notice")
    reopened(page, 2)
    np.testing.assert_array_equal(downloaded_masks(page), before)

    page.script("sessionStorage.clear()")  # another tab, another day
    page.driver.get(url)
    page.wait(lambda: page["continue"].is_displayed(), "the offer")
    assert page["continue"].text == "Continue with colours.png, 2 masks"
    page["continue"].click()
    reopened(page, 2)
    np.testing.assert_array_equal(downloaded_masks(page), before)

    page.driver.find_element(By.CLASS_NAME, "brand").click()
    assert page["empty"].is_displayed() and not page["pointer"].is_displayed()
    page["continue"].click()
    assert page["pointer"].is_displayed() and page.count == 2
    page.click(210, 150)


def test_what_cannot_be_kept_is_said_and_asked_about(page: Page) -> None:
    leaving = (
        "const e = new Event('beforeunload', {cancelable: true});"
        "dispatchEvent(e); return e.defaultPrevented"
    )
    page.click(100, 80)
    page.wait_until_kept()
    assert not page.script(leaving)
    page.script("IDBObjectStore.prototype.put = function () { this.transaction.abort() }")
    page.click(300, 200)
    page.wait_for_notice("could not be kept")
    assert page["saved"].text == "Not kept in this browser"
    assert page.script(leaving)


def test_two_tabs_do_not_overwrite_each_other(page: Page, url: str) -> None:
    page.click(100, 80)
    page.wait_until_kept()
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    try:
        page.driver.get(url)
        page.wait(lambda: page["continue"].is_displayed(), "the offer")
        page["continue"].click()
        reopened(page, 1)
        page.click(300, 200)
        page.wait_until_kept()
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    page.click(210, 150)
    page.wait_for_notice("was changed in another tab")
    assert page["saved"].text == "Not kept in this browser"
    page["notices"].find_element(By.XPATH, ".//button[text()='Keep this one']").click()
    page.wait_until_kept()
    before = downloaded_masks(page)
    page.driver.refresh()
    reopened(page, 2)
    np.testing.assert_array_equal(downloaded_masks(page), before)


# Folders and addresses


def test_a_folder(page: Page, app: FastAPI, folder: list[Path]) -> None:
    embedded = len(app.state.studio.cache)
    open_and_wait(page, folder, "1.png")
    page.wait(lambda: len(app.state.studio.cache) == embedded + 2, "the next one, embedded ahead")

    def items() -> list[str]:
        buttons = page["strip-list"].find_elements(By.TAG_NAME, "button")
        return [button.get_attribute("aria-label") for button in buttons]

    assert items() == ["1.png, 0 masks", "2.png, 0 masks", "10.png, 0 masks"]
    assert page["strip-count"].text == "1 of 3, 0 done"
    page.click(80, 60)
    page.keys("d")  # done, and the next one
    page.wait(lambda: name_of(page) == "2.png", "the next picture")
    page.wait_for_picture()
    assert page.count == 0
    assert items()[0] == "1.png, 1 mask, done" and page["strip-count"].text == "2 of 3, 1 done"
    page.click(40, 30)
    page.click(100, 90)
    page.keys(".")
    page.wait(lambda: name_of(page) == "10.png", "the last picture")
    page.wait_for_picture()
    assert not page["next"].is_enabled()
    page.keys(",")
    page.wait(lambda: name_of(page) == "2.png" and page.count == 2, "the picture before")
    page.wait_for_picture()

    page.driver.refresh()  # the folder has to be opened again, and nothing is lost
    reopened(page, 2)
    page["folder"].send_keys(str(folder[0].parent))  # this time as a folder
    page.wait(
        lambda: name_of(page) == "1.png" and not page["progress"].is_displayed(), "the folder"
    )
    page.wait(lambda: items()[1] == "2.png, 2 masks", "what was kept of the others")
    assert items()[0] == "1.png, 1 mask, done" and page.count == 1
    assert page["done"].get_attribute("aria-pressed") == "true"


TRANSFER = """
const bytes = Uint8Array.from(atob(arguments[1]), c => c.charCodeAt(0));
const transfer = new DataTransfer();
for (const name of arguments[2]) transfer.items.add(new File([bytes], name, {type: "image/png"}));
if (arguments[3]) transfer.setData("text/plain", arguments[3]);
const field = arguments[0] === "drop" ? "dataTransfer" : "clipboardData";
const Kind = arguments[0] === "drop" ? DragEvent : ClipboardEvent;
document.body.dispatchEvent(new Kind(arguments[0], {[field]: transfer, bubbles: true}));
"""


def transfer(page: Page, kind: str, content: bytes, names: list[str], text: str = "") -> None:
    import base64

    page.script(TRANSFER, kind, base64.b64encode(content).decode(), names, text)


def test_dropped_and_pasted_pictures(page: Page) -> None:
    content = encoded(picture(31, 60, 80))
    transfer(page, "drop", content, ["b.png", "a.png", "readme.txt.png"])
    page.wait(lambda: name_of(page) == "a.png", "the first of those dropped")
    page.wait_for_picture()
    assert page["strip-count"].text == "1 of 3, 0 done"
    transfer(page, "paste", content, ["image.png"])
    page.wait(lambda: name_of(page) == "image.png", "the pasted picture")
    page.wait_for_picture()
    assert not page["strip"].is_displayed()
    transfer(page, "paste", b"", [], "just words")
    page.wait_for_notice("no picture on the clipboard")


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another site: /open.png may be read by other pages, /closed.png may not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith(".png") else 404)
            self.send_header("Content-Type", "image/png")
            if self.path != "/closed.png":
                self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(encoded(picture(32, 60, 80)))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_pictures_address(page: Page, elsewhere: str) -> None:
    transfer(page, "paste", b"", [], f"{elsewhere}/open.png")
    page.wait(lambda: name_of(page) == "open.png", "the picture")
    page.wait_for_picture()
    page.driver.find_element(By.CLASS_NAME, "brand").click()
    page["address"].send_keys(f"{elsewhere}/closed.png\n")
    page.wait_for_notice("does not let other pages read")
    page["address"].clear()
    page["address"].send_keys(f"{elsewhere}/missing\n")
    page.wait_for_notice("answered 404")
    page["address"].clear()
    page["address"].send_keys("a picture\n")
    page.wait_for_notice("not an address")


# Everything


@pytest.fixture
def batches(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Lets "everything" go on by one batch of points with each release."""
    allowed = threading.Semaphore(0)
    decoder = app.state.studio.everything.decoder

    def decode(*arguments: Any) -> Any:
        assert allowed.acquire(timeout=60)
        return decoder(*arguments)

    monkeypatch.setattr(app.state.studio.everything, "decoder", decode)
    yield allowed
    allowed.release(1000)


def choose_options(page: Page, side: int) -> None:
    """A grid, and thresholds that a random model passes; its masks have nearly all the same box."""
    page["everything-options"].click()
    page["grid"].clear()
    page["grid"].send_keys(str(side))
    for name, value in (("least-iou", 0), ("least-stability", 0), ("most-overlap", 1)):
        page.script(
            "const [id, value] = arguments, e = document.getElementById(id); e.value = value;"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )
    page.keys(Keys.ESCAPE)
    assert page["everything-summary"].text == f"{side} × {side} points, IoU 0.00, stability 0.00"


def test_everything_appears_as_it_is_found(
    page: Page, batches: threading.Semaphore, sam: Sam, image: np.ndarray
) -> None:
    choose_options(page, 9)  # 81 points: two batches
    page.click(100, 80)
    page["everything"].click()
    batches.release()
    page.wait(lambda: "64 of 81 points" in page["progress-text"].text, "the points done")
    count = page.count - 1
    assert 64 <= count < 3 * 81 and f"{count} masks" in page["progress-text"].text
    batches.release()
    page.wait(lambda: not page["progress"].is_displayed(), "the end")
    options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    expected = SamAutomaticMaskGenerator(sam, points_per_side=9, **options).generate(image)
    _, *found = downloaded_masks(page)
    np.testing.assert_array_equal(found, [record["segmentation"] for record in expected])
    page["undo"].click()  # one step
    assert page.count == 1


def test_cancelling_everything_keeps_what_is_there(
    page: Page, batches: threading.Semaphore
) -> None:
    choose_options(page, 16)  # four batches
    page["everything"].click()
    batches.release()
    page.wait(lambda: "64 of 256 points" in page["progress-text"].text, "the points done")
    count = page.count
    page["cancel"].click()
    page.wait_for_notice("Cancelled.")
    batches.release(1000)
    assert count >= 64
    page.wait_for_notice(f"{count} masks found so far stay")
    assert page.count == count and page["everything"].is_enabled()
    page.click(100, 80)

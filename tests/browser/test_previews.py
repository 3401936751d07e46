"""Who makes the mask under the pointer: the browser, or the server where that is faster."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HEIGHT, WIDTH, Page, in_page
from fastapi import FastAPI
from PIL import Image, ImageFilter
from pycocotools import mask as mask_utils
from selenium.webdriver.common.action_chains import ActionChains

from samtrt.masks.predictor import SamPredictor

POINT = (100, 80)

# A browser that takes a third of a second for what the decoder's worker does.
SLOW_WORKER = """
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...rest) {
  if (message?.method !== "decode") return post.call(this, message, ...rest);
  setTimeout(() => post.call(this, message, ...rest), 300);
};
"""

# Where the pointer was last.
WHERE = """
const surface = document.getElementById("pointer");
surface.addEventListener("pointermove", (e) => (window.where = [e.offsetX, e.offsetY]));
"""

# Of each pixel of the picture whether the preview covers its middle.
PREVIEW = """
const [scale, left, top] = arguments[0];
const canvas = document.getElementById("pointer");
const ratio = canvas.width / canvas.getBoundingClientRect().width;
const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
const found = [];
for (let y = 0; y < arguments[2]; y++) {
  for (let x = 0; x < arguments[1]; x++) {
    const column = Math.floor((left + (x + 0.5) * scale) * ratio);
    const row = Math.floor((top + (y + 0.5) * scale) * ratio);
    found.push(data[4 * (row * width + column) + 3] > 0);
  }
}
return found;
"""


@pytest.fixture
def slow_page(shared_page: Page, url: str) -> Iterator[Page]:
    """A page whose browser decodes slowly, before a picture is opened."""
    driver = shared_page.driver
    source = {"source": SLOW_WORKER}
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    shared_page.start_afresh(url)
    yield shared_page
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.fixture
def slow_decoder(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the server's decoder take so many seconds more."""
    studio = app.state.studio
    decode = studio.decoder

    def slow(seconds: float) -> None:
        def decoder(*arguments: Any) -> Any:
            time.sleep(seconds)
            return decode(*arguments)

        monkeypatch.setattr(studio, "decoder", decoder)

    return slow


def grown(mask: np.ndarray) -> np.ndarray:
    """With two pixels more around it."""
    return np.array(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(5))) > 0


def asked(page: Page) -> int:
    """How often the page has asked the server for masks."""
    names = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
    return sum(name.endswith("/masks") for name in names)


def place(page: Page) -> str | None:
    return page["previews"].get_attribute("data-place")


def hover(page: Page, x: float, y: float) -> None:
    """Previews the mask under a pixel, where nothing was previewed before."""
    ActionChains(page.driver).move_to_element(page["help"]).perform()
    page.wait(lambda: page.preview_pixels() < 5000, "no preview")
    page.at(x, y).perform()
    page.wait(lambda: page.preview_pixels() > 5000, "the preview")


def test_a_quick_browser_asks_no_server(page: Page) -> None:
    page.wait(lambda: place(page) == "browser", "the measurement")
    hover(page, *POINT)
    assert asked(page) == 0
    page["help"].click()
    page.wait(lambda: "WebAssembly" in page["previews"].text, "how previews are made")


def test_a_quick_server_previews_for_a_slow_browser(
    slow_page: Page,
    file: Path,
    predictor: SamPredictor,
    slow_decoder: Callable[[float], None],
) -> None:
    slow_page.open(file)
    slow_page.wait(lambda: place(slow_page) == "server", "the measurement")
    before = asked(slow_page)
    assert before == 3
    slow_page.script(WHERE)
    hover(slow_page, *POINT)
    assert asked(slow_page) > before
    found = slow_page.script(PREVIEW, slow_page.view, WIDTH, HEIGHT)
    scale, *corner = slow_page.view
    point = (np.array(slow_page.script("return where")) - corner) / scale
    assert np.abs(point - POINT).max() < 1
    masks, scores, _ = predictor.predict(point[None], np.array([1]))
    expected = masks[int(np.argmax(scores))]
    shown = np.reshape(found, (HEIGHT, WIDTH))
    assert (shown | ~expected).mean() > 0.995
    assert (grown(expected) | ~shown).mean() > 0.995  # with its outline
    slow_page["help"].click()
    slow_page.wait(lambda: "by the server" in slow_page["previews"].text, "how previews are made")
    slow_page.driver.find_element("css selector", "#help-dialog [aria-label=Close]").click()

    slow_decoder(1.0)  # others have come
    for step in range(8):
        if place(slow_page) == "browser":
            break
        hover(slow_page, POINT[0] + 20 * (step % 2), POINT[1])
    assert place(slow_page) == "browser"
    before = asked(slow_page)
    hover(slow_page, *POINT)
    assert asked(slow_page) == before


def test_a_slow_server_is_left_alone(
    slow_page: Page, file: Path, slow_decoder: Callable[[float], None]
) -> None:
    slow_decoder(1.0)
    slow_page.open(file)
    slow_page.wait(lambda: place(slow_page) == "browser", "the measurement")
    assert asked(slow_page) == 3
    hover(slow_page, *POINT)
    assert asked(slow_page) == 3


def test_a_server_that_fails_is_replaced_by_the_browser(
    slow_page: Page, file: Path, app: FastAPI
) -> None:
    slow_page.open(file)
    slow_page.wait(lambda: place(slow_page) == "server", "the measurement")
    cache = app.state.studio.cache
    with cache._lock:
        cache._values.clear()  # the server was started again
    hover(slow_page, *POINT)
    assert place(slow_page) == "browser"
    assert not slow_page["notices"].text


@pytest.mark.parametrize("size", [(23, 31), (90, 140), (47, 61)])
def test_a_servers_mask_is_read_where_it_is_shown(shared_page: Page, size: tuple[int, int]) -> None:
    """At another size and in a window of it, at the pixels' middles: against NumPy."""
    mask = np.random.default_rng(7).random((47, 61)) > 0.6
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    rows, columns = (
        np.floor((np.arange(to) + 0.5) * of / to).astype(int)
        for to, of in zip(size, mask.shape, strict=True)
    )
    x0, y0, x1, y1 = 3, 5, size[1] - 4, size[0] - 1
    expected = mask[np.ix_(rows, columns)][y0:y1, x0:x1]
    counts = in_page(
        shared_page,
        "runs",
        "const runs = {size: arguments[1], counts: module.textToCounts(arguments[0])};"
        "return [...module.resampleRuns(runs, arguments[2], arguments[3]).counts];",
        rle["counts"].decode(),
        list(mask.shape),
        list(size),
        [x0, y0, x1, y1],
    )
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    np.testing.assert_array_equal(values.reshape(expected.shape, order="F"), expected)

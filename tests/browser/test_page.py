"""The page in a headless Chromium, with a tiny seeded model: its masks are the predictor's."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HEIGHT, WIDTH, Page, downloaded_masks, in_page, mask_of
from PIL import Image
from pycocotools import mask as mask_utils
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server_support import encoded, picture, running, tiny_decoder

from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam
from samtrt.server.app import create_app


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def best_of(answer: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mask [H, W] and logits [1, h, w] of the highest score."""
    masks, scores, logits = answer
    best = int(np.argmax(scores))
    return masks[best], logits[best : best + 1]


def requests_of(page: Page) -> list[str]:
    return page.script("return performance.getEntriesByType('resource').map(e => e.name)")


# The masks


def test_clicks_keep_the_predictors_masks(page: Page, predictor: SamPredictor) -> None:
    points = [(100, 80), (300, 200), (210, 150)]
    for point in points:
        page.click(*point)
    for point, mask in zip(points, downloaded_masks(page), strict=True):
        expected, _ = best_of(predictor.predict(np.array([point]), np.array([1])))
        assert iou(mask, expected) > 0.99


def test_quick_clicks_are_all_answered(page: Page, predictor: SamPredictor) -> None:
    points = [(100, 80), (300, 200), (210, 150), (60, 240)]
    for point in points:
        page.at(*point).click().perform()
    page.wait(lambda: page.count == len(points), "the masks of all clicks")
    for point, annotation in zip(points, page.coco()["annotations"], strict=True):
        # Clicks fall on the screen's pixels, and a random model's best mask hangs by a hair.
        clicked = np.array(annotation["point_coords"])
        assert np.abs(clicked - point).max() < 1
        expected, _ = best_of(predictor.predict(clicked, np.array([1])))
        assert iou(mask_of(annotation), expected) > 0.99


def test_boxes_and_negative_points_are_the_predictors(page: Page, predictor: SamPredictor) -> None:
    page.at(60, 50).click_and_hold().perform()
    page.at(200, 120).perform()
    page.at(300, 220).release().perform()
    page.wait(lambda: page.count == 1, "the mask of a box")
    box = np.array([60, 50, 300, 220])
    masks, _, logits = predictor.predict(box=box, multimask_output=False)
    assert iou(downloaded_masks(page)[0], masks[0]) > 0.98  # corners fall between pixels

    before = page["list"].text
    page.at(100, 100).context_click().perform()
    page.wait(lambda: page["list"].text != before, "the changed mask")
    masks, _, _ = predictor.predict(
        np.array([[100, 100]]), np.array([0]), box, mask_input=logits, multimask_output=False
    )
    assert iou(downloaded_masks(page)[0], masks[0]) > 0.98


# A first worker that never says that it has started, and no patience with it. (In a block: outside
# of one the page would find this setTimeout, the browser's own.)
HANGING = """
{
  const { setTimeout } = window;
  let isOver = false;
  window.setTimeout = (f, ms, ...rest) =>
    ms !== 20_000 || isOver
      ? setTimeout(f, ms, ...rest)
      : setTimeout(() => ((isOver = true), f()), 200);
  let count = 0;
  window.asked = [];
  window.Worker = class extends Worker {
    #isFirst = count++ === 0;
    set onmessage(f) {
      super.onmessage = (event) => this.#isFirst && "result" in event.data || f(event);
    }
    postMessage(message, transfer) {
      if (message.method === "start") window.asked.push(message.argument.maxThreads);
      super.postMessage(message, transfer);
    }
  };
}
"""


def test_a_decoder_whose_threads_hang_starts_with_one(page: Page, url: str, file: Path) -> None:
    """As those of Firefox's workers in workers do, now and then."""
    source = {"source": HANGING}
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    try:
        page.start_afresh(url)
        page.open(file)
        page.click(100, 80)
        assert page.count == 1
        assert page.script("return window.asked") == [4, 1]
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_added_points_refine_the_selected_mask(page: Page, predictor: SamPredictor) -> None:
    page.click(100, 80)
    _, logits = best_of(predictor.predict(np.array([[100, 80]]), np.array([1])))
    before = page["list"].text
    page.driver.find_element(By.CSS_SELECTOR, "[data-tool=add]").click()
    page.at(300, 200).click().perform()
    page.wait(lambda: page["list"].text != before, "the changed mask")
    assert page.count == 1
    points, labels = np.array([[100, 80], [300, 200]]), np.array([1, 1])
    masks, _, _ = predictor.predict(points, labels, mask_input=logits, multimask_output=False)
    assert iou(downloaded_masks(page)[0], masks[0]) > 0.98


def test_hovering_previews_without_a_request(page: Page) -> None:
    assert page.script("return crossOriginIsolated")  # so that the decoder may use threads
    before = requests_of(page)
    assert page.preview_pixels() < 5000
    page.at(100, 80).perform()
    page.wait(lambda: page.preview_pixels() > 5000, "the preview")
    page.click(100, 80)
    page.at(300, 200).perform()
    page.wait(lambda: page.preview_pixels() > 5000, "the next preview")
    assert requests_of(page) == before and page.count == 1
    ActionChains(page.driver).move_to_element(page["help"]).perform()
    page.wait(lambda: page.preview_pixels() < 5000, "the preview to go")


def test_downloads_are_the_masks(page: Page, image: np.ndarray) -> None:
    page.click(100, 80)
    page.click(300, 200)
    hide = page.driver.find_elements(By.CSS_SELECTOR, "[data-focus^=eye]")[0]
    hide.click()  # the list shows the newest first; hidden masks are not downloaded
    (mask,) = downloaded_masks(page)
    with Image.open(page.download("mask")) as found:
        np.testing.assert_array_equal(np.array(found.convert("L")) == 255, mask)
    with Image.open(page.download("cutout")) as found:
        cutout = np.array(found)
    np.testing.assert_array_equal(cutout[..., 3], np.where(mask, 255, 0))
    np.testing.assert_array_equal(cutout[mask][:, :3], image[mask])


# The list and its history


def test_undo_redo_clear_and_delete(page: Page) -> None:
    page.click(100, 80)
    page.click(300, 200)
    page["undo"].click()
    assert page.count == 1
    page["redo"].click()
    assert page.count == 2 and not page["redo"].is_enabled()
    page["clear"].click()
    assert page.count == 0 and page["no-masks"].is_displayed()
    page["undo"].click()
    assert page.count == 2
    page.driver.find_element(By.CSS_SELECTOR, "[aria-label='Delete Mask 1']").click()
    assert page.count == 1 and "Mask 2" in page["list"].text


def test_opacity_changes_what_is_painted(page: Page) -> None:
    page.click(100, 80)

    def shown(name: str) -> float:
        return float(page[name].value_of_css_property("opacity"))

    assert shown("masks") == 0.5 and shown("edges") == 1
    page["opacity"].send_keys(Keys.HOME)
    assert page["opacity-value"].text == "0 %" and shown("masks") == shown("edges") == 0


def test_everything_by_keyboard(page: Page, predictor: SamPredictor) -> None:
    """No pointer at all: from the canvas to a mask, a box, and back."""
    keys = ActionChains(page.driver)
    page.script("document.getElementById('pointer').focus()")
    keys.send_keys(Keys.ARROW_LEFT * 5, Keys.ARROW_UP * 3, Keys.ENTER).perform()
    page.wait(lambda: page.count == 1, "the mask of Enter")
    step = WIDTH / 100
    point = [WIDTH / 2 - 5 * step, HEIGHT / 2 - 3 * step]
    expected, _ = best_of(predictor.predict(np.array([point]), np.array([1])))
    assert iou(downloaded_masks(page)[0], expected) > 0.99

    page.script("document.getElementById('pointer').focus()")
    before = page["list"].text
    keys = ActionChains(page.driver)
    keys.send_keys(Keys.ARROW_RIGHT * 9, "-").perform()
    page.wait(lambda: page["list"].text != before, "the changed mask")
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("zz").key_up(Keys.CONTROL).perform()
    assert page.count == 0
    keys = ActionChains(page.driver)
    keys.send_keys("b", Keys.ARROW_RIGHT * 12, Keys.ARROW_DOWN * 12, "b").perform()
    page.wait(lambda: page.count == 1, "the mask of a box")
    ActionChains(page.driver).send_keys(Keys.DELETE).perform()
    assert page.count == 0


def test_segment_everything_adds_what_is_found(
    page: Page, sam: Sam, image: np.ndarray, generator_options: dict[str, Any]
) -> None:
    # A random model is never confident.
    no_thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    generator_options |= no_thresholds
    expected = SamAutomaticMaskGenerator(sam, **generator_options).generate(image)
    page["everything"].click()
    page.wait(lambda: page.count == len(expected) > 3, "the masks")
    for found, record in zip(downloaded_masks(page), expected, strict=True):
        np.testing.assert_array_equal(found, record["segmentation"])
    page["undo"].click()
    assert page.count == 0


@pytest.mark.usefixtures("generator_options")
def test_segment_everything_that_finds_nothing_says_so(page: Page) -> None:
    page["everything"].click()
    page.wait_for_notice("Nothing was found")
    assert page.count == 0


# Pictures and errors


def test_sample_and_a_second_picture(shared_page: Page, url: str, tmp_path: Path) -> None:
    page = shared_page
    page.start_afresh(url)
    page.wait(lambda: page["try-sample"].is_displayed(), "the sample button")
    page["try-sample"].click()
    page.wait_for_picture()
    page.click(100, 80)
    other = tmp_path / "other.jpg"
    other.write_bytes(encoded(picture(2, 200, 100), "JPEG"))
    page.open(other)
    page.wait(lambda: page["picture-name"].text == "other.jpg", "the second picture")
    page.wait_for_picture()
    assert page.count == 0
    page.click(50, 50)


def test_formats_that_only_the_browser_reads_are_converted(page: Page, tmp_path: Path) -> None:
    gif = tmp_path / "colours.gif"
    gif.write_bytes(encoded(picture(3, 90, 120), "GIF"))
    page.open(gif)
    page.wait(lambda: page["picture-name"].text == "colours.gif", "the picture")
    page.wait_for_picture()
    page.click(60, 40)


def test_files_that_are_no_pictures_are_refused(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page["file"].send_keys(str(text))
    page.wait_for_notice("not a picture")
    alert = page.driver.find_element(By.CSS_SELECTOR, "#notices [role=alert]")
    alert.find_element(By.XPATH, ".//button[text()='Dismiss']").click()
    assert page["notices"].text == ""


def test_refusals_of_the_server_are_shown(page: Page, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(encoded(np.zeros((1, 17_000, 3), np.uint8)))
    page["file"].send_keys(str(wide))
    page.wait_for_notice("too many pixels")


def test_a_server_that_is_gone_is_said_and_can_be_tried_again(
    make_page: Callable[..., Page], sam: Sam, file: Path
) -> None:
    app = create_app(sam, tiny_decoder())
    with running(app) as url:
        page = make_page(url)
        page.wait(lambda: page["limits"].text, "the start")
    page["file"].send_keys(str(file))
    page.wait_for_notice("does not answer")
    page.wait_for_notice("Try again")


def test_embedding_shows_progress_and_can_be_cancelled(
    page: Page, gate: threading.Event, tmp_path: Path
) -> None:
    other = tmp_path / "slow.png"
    other.write_bytes(encoded(picture(9, 120, 160)))
    page["file"].send_keys(str(other))
    page.wait(lambda: "Reading slow.png" in page["progress-text"].text, "the progress")
    page.wait(lambda: page["progress-fill"].size["width"] > 0, "the bar")
    page["cancel"].click()
    page.wait_for_notice("Cancelled")
    gate.set()
    page["notices"].find_element(By.XPATH, ".//button[text()='Try again']").click()
    page.wait_for_picture()
    page.click(60, 40)


# The page as a whole


def test_nothing_is_loaded_from_elsewhere_and_nothing_complains(page: Page, url: str) -> None:
    page.click(100, 80)
    assert all(name.startswith((url, "blob:")) for name in requests_of(page))
    assert page.log() == []


@pytest.mark.parametrize("width", [390, 320])
def test_phone(make_page: Callable[..., Page], url: str, file: Path, width: int) -> None:
    page = make_page(url, width, 844, phone=True)
    page.wait(lambda: page["try-sample"].is_displayed(), "the start")
    assert page.script("return document.documentElement.scrollWidth") <= width
    start = page["empty"].rect
    assert start["x"] + start["width"] <= width - start["x"]
    page.open(file)
    assert page.script("return document.documentElement.scrollWidth") <= width
    for name in ("pointer", "everything", "undo"):
        bounds = page[name].rect
        assert bounds["x"] >= 0 and bounds["x"] + bounds["width"] <= width
        assert bounds["height"] >= 40
    page.click(WIDTH / 2, HEIGHT / 2)
    assert page["list"].text.startswith("Mask 1")


def test_every_control_has_a_name(page: Page) -> None:
    page.click(100, 80)
    nameless = page.script(
        "return [...document.querySelectorAll('button, input:not([hidden]), canvas[tabindex]')]"
        ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


# The page's own arithmetic


@pytest.mark.parametrize("size", [(300, 420), (75, 90), (1, 50), (640, 480)])
def test_upscaling_is_the_servers(shared_page: Page, size: tuple[int, int]) -> None:
    import torch

    from samtrt.pictures.transforms import MASK_THRESHOLD, ResizeLongestSide, postprocess_masks

    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(size=(1, 1, 64, 64)).astype(np.float32))
    input_size = ResizeLongestSide.get_preprocess_shape(*size, 256)
    expected = postprocess_masks(logits, input_size, size, 256)[0, 0] > MASK_THRESHOLD
    text = in_page(
        shared_page,
        "runs",
        "const r = module.runsFromLogits(Float32Array.from(arguments[0]), 64, 256, arguments[1],"
        " arguments[2]); return module.countsToText(r.counts);",
        logits.flatten().tolist(),
        list(input_size),
        list(size),
    )
    found = mask_utils.decode({"size": list(size), "counts": text.encode()}).astype(bool)
    assert (found != expected.numpy()).mean() < 1e-4


def test_run_lengths_are_cocos(shared_page: Page) -> None:
    rng = np.random.default_rng(5)
    masks = [rng.random((60, 80)) < share for share in (0, 0.02, 0.5, 0.98, 1)]
    masks += [np.zeros((1, 1), bool), np.ones((2000, 900), bool)]
    for mask in masks:
        rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
        text, box, area = in_page(
            shared_page,
            "runs",
            "const counts = module.textToCounts(arguments[0]);"
            "const r = {size: arguments[1], counts};"
            "return [module.countsToText(counts), module.boxOf(r), module.areaOf(r)];",
            rle["counts"].decode(),
            list(mask.shape),
        )
        assert text == rle["counts"].decode()
        assert area == mask.sum()
        assert box == mask_utils.toBbox(rle).tolist()

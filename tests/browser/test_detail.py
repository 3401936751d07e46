"""Zoomed in, masks are made from the part that is seen; they are the predictor's of that crop."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Page
from fastapi import FastAPI
from selenium.webdriver.common.keys import Keys
from server_support import encoded, picture

from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam

SIZE = (840, 1200)
POINT = (700.5, 500.5)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return picture(4, *SIZE)


@pytest.fixture(scope="module")
def large(scene: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "large.png"
    path.write_bytes(encoded(scene))
    return path


@pytest.fixture
def zoomed(shared_page: Page, url: str, large: Path) -> Page:
    """The large picture, five times as large as fits, about the point."""
    page = shared_page
    page.start_afresh(url)
    page.open(large)
    x, y = page.screen(*POINT)
    for _ in range(4):
        wheel = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": -200}
        page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    return page


def said(page: Page) -> str:
    return page["detail-text"].text if page["detail"].is_displayed() else ""


def part(page: Page) -> tuple[int, int, int, int]:
    """The box of the part that masks are made from."""
    box = page.wait(lambda: page["detail"].get_attribute("data-part"), "the part")
    x0, y0, x1, y1 = map(int, box.split())
    return x0, y0, x1, y1


def predicted(
    sam: Sam, image: np.ndarray, points: list[tuple[float, float]], box: tuple[int, int, int, int]
) -> np.ndarray:
    """The predictor's mask of a crop, in its place in the picture."""
    x0, y0, x1, y1 = box
    predictor = SamPredictor(sam)
    predictor.set_image(np.ascontiguousarray(image[y0:y1, x0:x1]))
    prompt = np.array(points) - (x0, y0)
    masks, scores, _ = predictor.predict(
        prompt, np.ones(len(points)), multimask_output=len(points) == 1
    )
    whole = np.zeros(image.shape[:2], bool)
    whole[y0:y1, x0:x1] = masks[int(np.argmax(scores))]
    return whole


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def test_a_click_decodes_the_part_that_is_seen(zoomed: Page, sam: Sam, scene: np.ndarray) -> None:
    page = zoomed
    page.click(*POINT)  # waits for the part
    box = part(page)
    assert said(page) == "Masks are made from this part of the picture."
    scale, left, top = page.view
    surface = page["pointer"].rect
    seen = [-left / scale, -top / scale]
    seen += [seen[0] + surface["width"] / scale, seen[1] + surface["height"] / scale]
    assert box[0] <= seen[0] and box[1] <= seen[1] and box[2] >= seen[2] and box[3] >= seen[3]
    assert (box[2] - box[0]) * (box[3] - box[1]) < 0.25 * scene.shape[0] * scene.shape[1]

    found = page.masks()[0]
    (point,) = page.coco()["annotations"][0]["point_coords"]
    assert np.abs(np.subtract(point, POINT)).max() < 0.5
    expected = predicted(sam, scene, [tuple(point)], box)
    assert iou(found, expected) > 0.99
    whole = predicted(sam, scene, [tuple(point)], (0, 0, SIZE[1], SIZE[0]))
    assert iou(found, whole) < 0.9  # or this test would show nothing

    page.at(POINT[0] + 40, POINT[1] + 20).perform()
    page.wait(lambda: page.preview_pixels() > 1000, "a preview in the part")

    page.keys("0")  # all of it again, and its own embedding
    page.wait(lambda: not page["detail"].is_displayed(), "the whole picture")
    page.click(*POINT)
    (point,) = page.coco()["annotations"][1]["point_coords"]
    whole = predicted(sam, scene, [tuple(point)], (0, 0, SIZE[1], SIZE[0]))
    assert iou(page.masks()[1], whole) > 0.99


def test_it_can_be_switched_off_and_that_is_remembered(
    zoomed: Page, sam: Sam, scene: np.ndarray, url: str, large: Path
) -> None:
    page = zoomed
    try:
        page["detail-on"].click()
        assert said(page) == "Masks are made from the whole picture."
        page.click(*POINT)
        (point,) = page.coco()["annotations"][0]["point_coords"]
        whole = predicted(sam, scene, [tuple(point)], (0, 0, SIZE[1], SIZE[0]))
        assert iou(page.masks()[0], whole) > 0.99
        page.driver.get(url)  # the picture comes back by itself
        page.wait(lambda: page["panel"].is_displayed(), "the picture")
        page.wait_for_picture()
        page.script("document.getElementById('pointer').focus()")
        page.keys(*[Keys.PAGE_UP] * 6)
        page.wait(lambda: page["detail"].is_displayed(), "the switch")
        assert not page["detail-on"].is_selected()
    finally:
        page.script("localStorage.removeItem('samtrt-detail')")


def test_points_far_apart_are_answered_from_the_whole_picture(
    zoomed: Page, sam: Sam, scene: np.ndarray
) -> None:
    page = zoomed
    page.click(*POINT)
    part(page)
    page.keys("0")
    page.tool("add")
    before = page["list"].text
    page.at(100, 100).click().perform()
    page.wait(lambda: page["list"].text != before, "the second point")
    points = [tuple(point) for point in page.coco()["annotations"][0]["point_coords"]]
    expected = predicted(sam, scene, points, (0, 0, SIZE[1], SIZE[0]))
    assert iou(page.masks()[0], expected) > 0.98


def test_a_part_that_cannot_be_read_is_said(
    zoomed: Page, monkeypatch: pytest.MonkeyPatch, app: FastAPI
) -> None:
    page = zoomed
    part(page)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(type(app.state.studio.sam), "embed", fail)
    page.script("document.getElementById('pointer').focus()")
    page.keys(*[Keys.PAGE_UP] * 5)
    page.wait(lambda: "could not be read" in said(page), "the reason")
    page.keys(Keys.ENTER)
    page.wait(lambda: page.count == 1, "a mask of the whole picture")

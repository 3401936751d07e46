"""Zoom and pan: what is under the pointer, pixel for pixel, and what two fingers do not do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import HEIGHT, WIDTH, Page
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FIRST_COLOR = (47, 143, 214)  # of the first mask, colors.js


def wheel(page: Page, x: float, y: float, turn: int) -> None:
    """Turns the wheel over a pixel of the picture; negative is away from the user, and zooms in."""
    page.at(x, y).perform()
    at_x, at_y = page.screen(x, y)
    event = {"type": "mouseWheel", "x": at_x, "y": at_y, "deltaX": 0, "deltaY": turn}
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def squares(page: Page, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the picture whose middles are seen, and the colours [n, m, 3] there."""
    scale, left, top = page.view
    shown = page.screenshot()
    rows = np.arange(HEIGHT)
    columns = np.arange(WIDTH)
    ys = np.floor(top + (rows + 0.5) * scale).astype(int)
    xs = np.floor(left + (columns + 0.5) * scale).astype(int)
    rows, ys = rows[(ys > 8) & (ys < shown.shape[0] - 8)], ys[(ys > 8) & (ys < shown.shape[0] - 8)]
    inside = (xs > 8) & (xs < shown.shape[1] - 8)
    return rows, columns[inside], shown[np.ix_(ys, xs[inside])]


def test_one_to_one_shows_the_pictures_own_pixels(page: Page, image: np.ndarray) -> None:
    assert page["zoom-level"].text != "100 %"
    page.keys("z")
    assert page["zoom-level"].text == "100 %"
    page.at(-30, -30).perform()  # no preview
    _, left, top = page.view
    shown = page.screenshot()[round(top) : round(top) + HEIGHT, round(left) : round(left) + WIDTH]
    np.testing.assert_array_equal(shown, image)


def test_the_wheel_zooms_about_the_pointer_and_zero_fits(page: Page) -> None:
    fitted = page.view
    for _ in range(3):  # until both sides of the picture are beyond the surface's
        wheel(page, 210, 150, -240)
    x, y = page.screen(190.5, 160.5)
    before = page.view[0]
    wheel(page, 190.5, 160.5, -100)
    page.wait(lambda: page.view[0] > 1.1 * before, "the zoom")
    assert np.hypot(*np.subtract(page.screen(190.5, 160.5), (x, y))) < 2
    page.keys("0")
    page.wait(lambda: page.view == fitted, "the whole picture")
    wheel(page, 100.5, 80.5, 300)
    assert page.view[0] <= fitted[0]


def test_masks_are_sharp_at_any_zoom(page: Page, image: np.ndarray) -> None:
    page.click(100, 80)
    mask = page.masks()[0]
    page.script("document.getElementById('opacity').focus()")
    page.keys(Keys.END)
    page.script("document.getElementById('pointer').focus()")
    page.keys(Keys.ESCAPE)  # nothing selected: its outline and points would lie on top
    page.script("document.getElementById('detail').style.visibility = 'hidden'")  # as it does
    for turns in (0, 4, 3):
        for _ in range(turns):
            wheel(page, *np.argwhere(mask)[0][::-1] + 0.5, -260)
        page.script("document.activeElement.blur()")
        ActionChains(page.driver).move_to_element(page["help"]).perform()
        rows, columns, shown = squares(page, image)
        assert len(rows) > 10 and len(columns) > 10
        is_mask = (np.abs(shown.astype(int) - FIRST_COLOR) <= 1).all(-1)
        expected = mask[np.ix_(rows, columns)]
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(is_mask, expected)


def test_clicks_mean_the_pixel_that_is_seen_there(page: Page) -> None:
    for _ in range(5):
        wheel(page, 300, 200, -200)
    page.click(310, 205)
    points = page.coco()["annotations"][0]["point_coords"]
    assert np.abs(np.subtract(points, [[310, 205]])).max() < 0.5


def test_space_and_the_middle_button_move_the_picture_and_make_no_mask(page: Page) -> None:
    for _ in range(5):
        wheel(page, 210, 150, -200)
    start = page.screen(210, 150)
    page.script("document.getElementById('pointer').focus()")
    ActionChains(page.driver, duration=0).key_down(Keys.SPACE).perform()
    page.at(210, 150).click_and_hold().move_by_offset(60, -40).release().perform()
    ActionChains(page.driver).key_up(Keys.SPACE).perform()
    moved = np.subtract(page.screen(210, 150), start)
    assert np.abs(moved - (60, -40)).max() <= 1
    assert page.count == 0 and page.view[0] > 5
    page.tool("select")  # whose drag moves too
    page.at(210, 150).click_and_hold().move_by_offset(-60, 40).release().perform()
    assert np.abs(np.subtract(page.screen(210, 150), start)).max() <= 2


def test_the_crosshair_stays_in_sight(page: Page) -> None:
    page.script("document.getElementById('pointer').focus()")
    page.keys(*[Keys.PAGE_UP] * 10)
    seen = page["pointer"].rect
    page.keys(*[Keys.ARROW_RIGHT] * 120)
    page.keys(Keys.ENTER)
    page.wait(lambda: page.count == 1, "the mask")
    (point,) = page.coco()["annotations"][0]["point_coords"]
    assert point[0] > WIDTH * 0.6
    x, y = page.screen(*point)
    assert seen["x"] < x < seen["x"] + seen["width"]
    assert seen["y"] < y < seen["y"] + seen["height"]


def touch(page: Page, kind: str, **fingers_at: tuple[float, float]) -> None:
    """What a touch screen sends: fingers, each with a name, in CSS pixels of the window."""
    fingers = [{"x": x, "y": y, "id": ord(name)} for name, (x, y) in fingers_at.items()]
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})


@pytest.fixture(scope="module")
def phone(make_page: Callable[..., Page], url: str, file: Path) -> Page:
    page = make_page(url, 390, 844, phone=True)
    page.open(file)
    return page


@pytest.mark.parametrize("tool", ["new", "brush"])
def test_two_fingers_zoom_and_never_draw(phone: Page, tool: str) -> None:
    phone.tool(tool)
    phone["zoom-fit"].click()
    scale = phone.view[0]
    bounds = phone["pointer"].rect
    x, y = bounds["x"] + bounds["width"] / 2, bounds["y"] + bounds["height"] / 2
    centre = ((x - bounds["x"] - phone.view[1]) / scale, (y - bounds["y"] - phone.view[2]) / scale)
    touch(phone, "touchStart", a=(x - 30, y))
    touch(phone, "touchStart", a=(x - 30, y), b=(x + 30, y))
    for apart in range(30, 100, 10):
        touch(phone, "touchMove", a=(x - apart, y), b=(x + apart, y))
    touch(phone, "touchEnd", a=(x - 90, y))
    for step in range(5):  # the finger that is left does not draw either
        touch(phone, "touchMove", b=(x + 90 - 12 * step, y + 20))
    touch(phone, "touchEnd")
    assert phone.view[0] == pytest.approx(3 * scale, rel=0.02)
    assert np.abs(np.subtract(phone.screen(*centre), (x, y))).max() < 3
    assert phone.count == 0 and not phone["undo"].is_enabled()


def test_a_finger_alone_draws(phone: Page) -> None:
    phone.tool("new")
    phone["zoom-fit"].click()
    (x0, y0), (x1, y1) = phone.screen(100, 80), phone.screen(300, 220)
    touch(phone, "touchStart", a=(x0, y0))
    for share in (0.3, 0.6, 1.0):
        touch(phone, "touchMove", a=(x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
    touch(phone, "touchEnd")
    phone.wait(lambda: phone.count == 1, "the mask of a box")
    assert phone.driver.find_element(By.ID, "list").text.startswith("Mask 1")
    assert phone.script("return scrollY") == 0  # the picture stays under the finger

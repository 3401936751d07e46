"""The page for those who use a keyboard, a screen reader, large type, or colours of their own."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Page, axe_violations
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server_support import encoded, picture

DARK = {"name": "prefers-color-scheme", "value": "dark"}
LIGHT = {"name": "prefers-color-scheme", "value": "light"}
FORCED = {"name": "forced-colors", "value": "active"}


def emulate(page: Page, *features: dict[str, str]) -> None:
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": list(features)})


def resize(page: Page, width: int, height: int, ratio: float = 1) -> None:
    """Sizes in CSS pixels; a ratio of 1.5 is the browser's zoom of 150 %."""
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False},
    )


@pytest.fixture(autouse=True)
def as_before(shared_page: Page) -> Iterator[None]:
    yield
    emulate(shared_page)
    shared_page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def axe(page: Page, state: str) -> None:
    """Asserts that axe-core has nothing to say, in light and in dark."""
    for theme in (LIGHT, DARK):
        emulate(page, theme, {"name": "prefers-reduced-motion", "value": "reduce"})
        found = axe_violations(page)
        assert found == [], f"{state}, {theme['value']}: {found}"


def focused(page: Page) -> str:
    """The id or the name of what has the focus."""
    element = page.driver.switch_to.active_element
    return element.get_attribute("id") or element.accessible_name


# axe-core, in every state


def test_axe_finds_nothing_before_and_while_a_picture_is_read(
    shared_page: Page, url: str, gate: threading.Event, tmp_path: Path
) -> None:
    page = shared_page
    page.start_afresh(url)
    page.wait(lambda: page["try-sample"].is_displayed(), "the sample button")
    axe(page, "empty")
    page["help"].click()
    axe(page, "help")
    page.keys(Keys.ESCAPE)
    assert focused(page) == "help"

    other = tmp_path / "slow.png"
    other.write_bytes(encoded(picture(11, 120, 160)))
    page["file"].send_keys(str(other))
    page.wait(lambda: "Reading" in page["progress-text"].text, "the progress")
    axe(page, "embedding")
    gate.set()
    page.wait_for_picture()


def test_axe_finds_nothing_with_a_picture_and_masks(page: Page, tmp_path: Path) -> None:
    axe(page, "picture")
    page.click(100, 80)
    page.click(300, 200)
    page.tool("brush")
    axe(page, "masks, brush")
    page.driver.find_elements(By.CSS_SELECTOR, "[data-focus^=eye]")[0].click()
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page["file"].send_keys(str(text))
    page.wait_for_notice("not a picture")
    axe(page, "error notice")
    page.keys(Keys.ESCAPE)
    for opener in ("edit-labels", "everything-options", "more-formats"):
        page[opener].click()
        assert page.driver.find_element(By.CSS_SELECTOR, "dialog[open]").is_displayed()
        axe(page, opener)
        page.keys(Keys.ESCAPE)
        assert not page.driver.find_elements(By.CSS_SELECTOR, "dialog[open]")
        assert focused(page) == opener
    for _ in range(6):
        page["zoom-in"].click()
    page.wait(lambda: page["detail"].is_displayed(), "the switch")
    axe(page, "zoomed")
    resize(page, 390, 844)
    axe(page, "narrow")


# Layout


def boxes(page: Page, selector: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right, bottom of what is shown, by name."""
    return page.script(
        "return Object.fromEntries([...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.checkVisibility()).map(e => { const r = e.getBoundingClientRect();"
        "return [e.ariaLabel || e.textContent.trim(), [r.left, r.top, r.right, r.bottom]]; }))",
        selector,
    )


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5


def settled(page: Page, width: int, height: int, ratio: float = 1) -> None:
    """The window has this size, and the picture has followed."""
    resize(page, width, height, ratio)
    page.wait(
        lambda: (
            page.script("return innerWidth") == width
            and page["frame"].rect["width"] == page["stage"].rect["width"]
            and page.script("return document.documentElement.scrollWidth") <= width
            and (width < 821 or page["frame"].rect["height"] == page["stage"].rect["height"])
        ),
        f"the layout of {width} pixels",
    )


def test_the_toolbar_stands_in_one_row(page: Page) -> None:
    sizes = [(821, 600, 1.0), (850, 600, 1.0), (880, 600, 1.0), (853, 480, 1.5)]
    for width, height, ratio in [*sizes, (1280, 720, 1.0), (1440, 900, 1.0)]:
        settled(page, width, height, ratio)
        tools = boxes(page, "#toolbar button")
        assert len(tools) == 13
        middles = [(top + bottom) / 2 for _, top, _, bottom in tools.values()]
        assert max(middles) - min(middles) < 4, tools
        panel = page["panel"].rect
        for name, box in tools.items():
            assert box[0] >= 0 and box[2] <= panel["x"] and box[3] <= height, name
            assert box[2] - box[0] >= 24 and box[3] - box[1] >= 24, name
            assert not any(overlap(box, other) for other in tools.values() if other is not box)
        assert page["pointer"].rect["height"] >= 0.55 * height


def test_a_narrow_page_has_names_and_room(page: Page) -> None:
    for width in (390, 320):
        settled(page, width, 844)
        assert page["open"].accessible_name == "Open picture"
        brush = page.driver.find_element(By.CSS_SELECTOR, "[data-tool=brush]")
        assert brush.accessible_name == "Brush"
        tools = boxes(page, "#toolbar button")
        for name, box in tools.items():
            assert box[0] >= 0 and box[2] <= width and box[3] <= 844, name
            assert not any(overlap(box, other) for other in tools.values() if other is not box)


def test_forced_colours_show_what_is_chosen(page: Page) -> None:
    page.click(100, 80)
    emulate(page, FORCED)

    def background(selector: str) -> str:
        element = page.driver.find_element(By.CSS_SELECTOR, selector)
        return element.value_of_css_property("background-color")

    assert background("[data-tool=new]") != background("[data-tool=add]")
    assert background("#list .swatch") == "rgba(47, 143, 214, 1)"
    row = page.driver.find_element(By.CSS_SELECTOR, "#list .selected")
    assert row.value_of_css_property("outline-style") == "solid"
    assert page["everything"].value_of_css_property("border-style") == "solid"


@pytest.mark.parametrize("ground", [0, 255])
def test_outlines_show_on_any_ground(
    shared_page: Page, url: str, tmp_path: Path, ground: int
) -> None:
    page = shared_page
    page.start_afresh(url)
    file = tmp_path / "ground.png"
    file.write_bytes(encoded(np.full((60, 80, 3), ground, np.uint8)))
    page.open(file)
    page.tool("brush")
    page.at(40, 30).click().perform()
    page.script("document.getElementById('opacity').focus()")
    page.keys(Keys.HOME)  # no area, no coloured edge: only the outline of the selected mask
    ActionChains(page.driver).move_to_element(page["count"]).perform()
    shown = page.screenshot().astype(int)
    scale, left, _ = page.view
    middle = shown[:, round(left + 40 * scale)]
    light = (middle.min(-1) > 200).sum()
    dark = (middle.max(-1) < 110).sum()
    assert light >= 2 and dark >= 2, (light, dark)

    page.script("document.getElementById('pointer').focus()")
    page.keys(Keys.ARROW_LEFT)
    edge = page.screenshot()[:8, 200].astype(int)  # the focus ring, from the outside in
    assert (edge.min(-1) > 240).any() and (edge.max(-1) < 20).any()


# Focus and keys


def test_focus_stays_where_a_mask_was_deleted(page: Page) -> None:
    for x in (100, 200, 300):
        page.click(x, 80)
    page.script("document.querySelector(\"[aria-label='Delete Mask 2']\").focus()")
    page.keys(Keys.ENTER)
    page.wait(lambda: page.count == 2, "one less")
    assert focused(page) == "Delete Mask 1"  # the row that took its place
    page.keys(Keys.ENTER)
    assert focused(page) == "Delete Mask 3"
    page.keys(Keys.ENTER)
    assert page.count == 0 and focused(page) == "pointer"
    page["undo"].click()
    page["clear"].click()
    assert focused(page) == "pointer"


def test_escape_ends_one_thing_at_a_time(page: Page, tmp_path: Path) -> None:
    page.click(100, 80)
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page["file"].send_keys(str(text))
    page.wait_for_notice("not a picture")
    page.script("document.getElementById('pointer').focus()")
    page.keys(Keys.ESCAPE)
    assert page["notices"].text == ""
    assert page.driver.find_elements(By.CSS_SELECTOR, "#list .selected")
    page.keys(Keys.ESCAPE)
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#list .selected")


def chosen(page: Page) -> str | None:
    found = page.driver.find_element(By.CSS_SELECTOR, "[data-tool][aria-checked=true]")
    return found.get_attribute("data-tool")


def test_single_keys_can_be_switched_off_and_it_is_remembered(page: Page, file: Path) -> None:
    page.keys("a")
    assert chosen(page) == "add"
    page.script("document.getElementById('opacity').focus()")
    page.keys("v")  # a field has the focus
    assert chosen(page) == "add"
    page["help"].click()
    page.keys("n")
    assert chosen(page) == "add"
    try:
        page["single-keys"].click()
        page.keys(Keys.ESCAPE)
        page.keys("r")
        assert chosen(page) == "add"
        page.driver.refresh()
        page.open(file)
        page.keys("r")
        assert chosen(page) == "new"
        page.click(100, 80)
        page.script("document.getElementById('pointer').focus()")
        page.keys(Keys.ARROW_LEFT, "b", "-", Keys.ARROW_LEFT, "b")
        assert page.count == 1
        page.keys(Keys.DELETE)  # no letter, digit or sign
        assert page.count == 0
    finally:
        page.script("localStorage.clear()")


def test_tab_goes_from_the_picture_to_the_tools_to_the_masks(page: Page) -> None:
    page.click(100, 80)
    page.script("document.querySelector('.brand').focus()")
    stops = []
    for _ in range(30):
        page.keys(Keys.TAB)
        stops.append(focused(page))
    order = [
        "open",
        "help",
        "pointer",
        "New",
        "everything",
        "zoom-fit",
        "clear",
        "split",
        "opacity",
    ]
    assert [stops.index(name) for name in order] == sorted(stops.index(name) for name in order)
    assert not {"Add", "Remove", "Select"} & set(stops)  # one stop for the tools, arrows between


def test_help_on_a_touch_screen_is_about_fingers(make_page: Callable[..., Page], url: str) -> None:
    page = make_page(url, 390, 844, phone=True)
    page["help"].click()
    text = page["help-dialog"].text
    assert "Two fingers" in text and "Right-click" not in text and "Hover" not in text
    bounds = page["help-dialog"].rect
    assert bounds["x"] >= 0 and bounds["x"] + bounds["width"] <= 390

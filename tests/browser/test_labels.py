"""Classes, candidates and duplicates in a browser."""

from pathlib import Path

import numpy as np
from conftest import Page, downloaded_masks
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server_support import encoded, picture
from test_access import axe, resize

from samtrt.masks.predictor import SamPredictor


def add_classes(page: Page, *names: str) -> None:
    page["edit-labels"].click()
    for name in names:
        page["new-label"].send_keys(name, Keys.ENTER)
    page.keys(Keys.ESCAPE)


def chips(page: Page) -> list[str]:
    return page["labels"].text.split("\n")


def facts(page: Page) -> list[str]:
    """Of each mask in the list, the newest first."""
    found = page["list"].find_elements(By.CLASS_NAME, "facts")
    return [each.text.split(" · ")[0] for each in found]


def colours(page: Page) -> list[str]:
    found = page["list"].find_elements(By.CLASS_NAME, "swatch")
    return [each.value_of_css_property("background-color") for each in found]


def test_classes_by_key_renamed_recoloured_sorted_and_remembered(page: Page, url: str) -> None:
    add_classes(page, "person", "car")
    assert chips(page) == ["1", "person", "2", "car"]
    page.click(100, 80)
    assert page.coco()["categories"] == [
        {"id": 1, "name": "person"},
        {"id": 2, "name": "car"},
        {"id": 3, "name": "object"},
    ]
    page.keys("2")  # the selected mask, and new ones
    assert facts(page) == ["car"]
    page.click(300, 200)
    page.keys("1")
    assert facts(page) == ["person", "car"]
    dataset = page.coco()
    assert [annotation["category_id"] for annotation in dataset["annotations"]] == [2, 1]
    assert [category["name"] for category in dataset["categories"]] == ["person", "car"]
    page["undo"].click()
    assert facts(page) == ["car", "car"]

    page["edit-labels"].click()
    name = page.driver.find_element(By.CSS_SELECTOR, "[data-row=name-2]")
    name.send_keys(Keys.CONTROL, "a")
    name.send_keys("automobile", Keys.TAB)
    page.script(
        "arguments[0].value = '#123456'; arguments[0].dispatchEvent(new Event('change'))",
        page.driver.find_element(By.CSS_SELECTOR, "[data-row=color-2]"),
    )
    page["sort-labels"].click()
    page.keys(Keys.ESCAPE)
    assert chips(page) == ["1", "automobile", "2", "person"]
    assert facts(page) == ["automobile", "automobile"]
    assert colours(page) == ["rgba(18, 52, 86, 1)"] * 2
    page.wait_until_kept()

    page.driver.refresh()
    page.wait(lambda: page["panel"].is_displayed() and page.count == 2, "the masks")
    page.wait_for_picture()
    assert chips(page) == ["1", "automobile", "2", "person"]
    assert facts(page) == ["automobile", "automobile"]
    assert colours(page) == ["rgba(18, 52, 86, 1)"] * 2
    page["edit-labels"].click()
    page.driver.find_element(By.CSS_SELECTOR, "[aria-label='Delete automobile']").click()
    page.keys(Keys.ESCAPE)
    assert chips(page) == ["1", "person"] and "automobile" not in page["list"].text


def test_digits_do_nothing_while_a_field_has_focus(page: Page) -> None:
    add_classes(page, "person")
    page.click(100, 80)
    page["edit-labels"].click()
    page["new-label"].send_keys("route 1")
    page.keys(Keys.ESCAPE)
    assert "person" not in facts(page)


def test_the_three_candidates_of_a_point(page: Page, predictor: SamPredictor) -> None:
    page.click(100, 80)
    masks, scores, _ = predictor.predict(np.array([[100, 80]]), np.array([1]))
    expected = masks[np.argsort(-scores)]

    def differs(mask: np.ndarray) -> float:
        return float((downloaded_masks(page)[0] != mask).mean())

    def pressed() -> list[str]:
        found = page["candidates"].find_elements(By.TAG_NAME, "button")
        return [each.text for each in found if each.get_attribute("aria-pressed") == "true"]

    assert pressed() == ["1"] and differs(expected[0]) < 0.01
    page["candidates"].find_elements(By.TAG_NAME, "button")[2].click()
    page.wait(lambda: pressed() == ["3"], "the third")
    assert differs(expected[2]) < 0.01 and page.count == 1
    page.keys("c")
    page.wait(lambda: pressed() == ["1"], "the first again")
    page.keys("c")
    page.wait(lambda: pressed() == ["2"], "the second")
    assert differs(expected[1]) < 0.01
    page["undo"].click()
    assert pressed() == ["1"]
    page.tool("add")
    page.at(300, 200).click().perform()
    page.wait(lambda: not page["candidates"].is_displayed(), "two points, which are one mask")


def test_a_duplicate_is_warned_of(page: Page) -> None:
    page.click(100, 80)
    assert "nearly" not in page["notices"].text
    page.click(100, 80)
    page.wait_for_notice("Mask 2 is nearly Mask 1 (IoU 1.00)")
    page["notices"].find_element(By.XPATH, ".//button[text()='Delete Mask 2']").click()
    assert page.count == 1 and page["notices"].text == ""


def test_axe_finds_nothing_in_dialogs_and_folders(page: Page, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for seed, path in enumerate(paths):
        path.write_bytes(encoded(picture(seed, 120, 160)))
    page["file"].send_keys("\n".join(map(str, paths)))
    page.wait(lambda: page["picture-name"].text == "0.png", "the first picture")
    page.wait_for_picture()
    add_classes(page, "person", "car")
    page.click(80, 60)
    page.keys("1")
    axe(page, "a folder, classes and candidates")
    for button in ("edit-labels", "more-formats", "everything-options"):
        page[button].click()
        axe(page, button)
        page.keys(Keys.ESCAPE)
    page.driver.find_element(By.CLASS_NAME, "brand").click()
    axe(page, "the start, with a picture to go on with")


def test_everything_can_be_reached_in_a_low_window(page: Page) -> None:
    """1280 × 720 at 150 %."""
    resize(page, 853, 480, 1.5)
    try:
        add_classes(page, *"abcdefghij")
        page.click(100, 80)
        page["list"].find_element(By.CLASS_NAME, "pick").click()  # fails where something covers it
        for button in ("everything-options", "more-formats", "edit-labels"):
            page[button].click()
            page.keys(Keys.ESCAPE)
        assert page.script("return document.documentElement.scrollHeight <= innerHeight")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

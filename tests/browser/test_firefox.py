"""The page in Firefox: the same masks, zoom, brush and files, and nothing for axe-core to say."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Page, axe_violations
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys

from samtrt.masks.predictor import SamPredictor


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = shutil.which("firefox") or shutil.which("firefox-esr")
    driver = shutil.which("geckodriver")
    if not browser or not driver:
        pytest.skip("firefox with geckodriver is not installed; `cargo install geckodriver`")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.FirefoxOptions()
    options.binary_location = browser
    for argument in ("-headless", "-width", "1440", "-height", "900"):
        options.add_argument(argument)
    options.set_preference("browser.download.folderList", 2)
    options.set_preference("browser.download.dir", str(downloads))
    service = webdriver.FirefoxService(driver)
    page = Page(webdriver.Firefox(options, service), downloads)
    yield page
    page.driver.quit()


def test_firefox(firefox: Page, url: str, file: Path, predictor: SamPredictor) -> None:
    page = firefox
    page.driver.get(url)
    page.wait(lambda: page["limits"].text, "the start")
    assert axe_violations(page) == []
    page.open(file)
    page.click(100, 80)
    masks, scores, _ = predictor.predict(np.array([(100, 80)]), np.array([1]))
    expected = masks[int(np.argmax(scores))]
    (first,) = page.masks()
    assert (first ^ expected).sum() < 0.01 * expected.sum()

    x, y = page.screen(200, 150)
    surface = page["pointer"].rect
    middle = (surface["x"] + surface["width"] / 2, surface["y"] + surface["height"] / 2)
    origin = ScrollOrigin.from_element(page["pointer"], round(x - middle[0]), round(y - middle[1]))
    before = page.view[0]
    ActionChains(page.driver).scroll_from_origin(origin, 0, -300).perform()
    page.wait(lambda: page.view[0] > 1.2 * before, "the zoom")
    page.tool("brush")
    page.at(200, 150).click_and_hold().perform()
    page.at(230, 160).perform()
    ActionChains(page.driver).release().perform()
    (painted,) = page.masks()
    assert painted[150:160, 200:203].all() and (first & ~painted).sum() == 0
    page.keys("n", "0")
    page.script("document.getElementById('pointer').focus()")
    page.keys(Keys.ARROW_LEFT, Keys.ENTER)
    page.wait(lambda: page.count == 2, "the mask of Enter")
    assert axe_violations(page) == []

"""A headless Chromium before a server with a model, and hands to use the page with."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from samtrt.server.assets import assets_installed

WAIT_SECONDS = 60
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def find_chromium() -> tuple[str, str]:
    """Chromium and its driver; the test is skipped without them, except in CI."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser and driver and assets_installed():
        return browser, driver
    missing = "the page's assets" if browser and driver else "chromium with chromedriver"
    reason = f"{missing} not installed; run tests/browser/install.sh"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Page:
    """The page, used as a person uses it.

    Args:
        driver: the browser.
        downloads: where its downloads go.
    """

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits until the condition gives something true, and gives that."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.05)
        notices = self["notices"].text
        pytest.fail(f"waited for {what}; the page says {notices!r}; log {self.log()}")

    def log(self) -> list[str]:
        """What the page wrote to the console as errors."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def open(self, file: Path) -> None:
        """Chooses a picture and waits for its embedding."""
        self["file"].send_keys(str(file))
        self.wait_for_picture()

    def wait_for_picture(self) -> None:
        self.wait(lambda: self["pointer"].is_displayed(), "the picture")
        self.wait(lambda: not self["progress"].is_displayed(), "the embedding")

    def at(self, x: float, y: float) -> ActionChains:
        """The pointer over a pixel (x, y) of the picture."""
        canvas = self["pointer"]
        scale, left, top = map(float, canvas.get_attribute("data-view").split())
        shown = canvas.rect
        return ActionChains(self.driver, duration=0).move_to_element_with_offset(
            canvas,
            round(left + x * scale - shown["width"] / 2),
            round(top + y * scale - shown["height"] / 2),
        )

    @property
    def count(self) -> int:
        """Masks in the list."""
        return int(self["count"].text)

    def click(self, x: float, y: float) -> None:
        """Clicks a pixel and waits for one more mask."""
        before = self.count
        self.at(x, y).click().perform()
        self.wait(lambda: self.count == before + 1, "the mask of a click")

    def preview_pixels(self) -> int:
        """How many pixels of the topmost canvas show something."""
        return self.script(
            "const c = document.getElementById('pointer');"
            "const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n;"
        )

    def download(self, kind: str) -> Path:
        """Clicks a download button and waits for the file."""
        before = set(self.downloads.iterdir())
        self.driver.find_element(By.CSS_SELECTOR, f"[data-download={kind}]").click()

        def finished() -> Path | None:
            new = set(self.downloads.iterdir()) - before
            done = [path for path in new if path.suffix in (".png", ".json")]
            return done[0] if done and len(new) == 1 else None

        return self.wait(finished, "the download")


@pytest.fixture(scope="session")
def make_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Page]]:
    """Opens pages: make_page(url, width, height, phone=False)."""
    browser, driver = find_chromium()
    drivers = []

    def make(url: str, width: int = 1440, height: int = 900, phone: bool = False) -> Page:
        downloads = tmp_path_factory.mktemp("downloads")
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        preferences = {"download.default_directory": str(downloads)}
        options.add_experimental_option("prefs", preferences)
        if phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
        drivers.append(chrome)
        chrome.get(url)
        return Page(chrome, downloads)

    yield make
    for chrome in drivers:
        chrome.quit()

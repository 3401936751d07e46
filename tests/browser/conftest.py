"""A headless Chromium before a server with a model, and hands to use the page with."""

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from pycocotools import mask as mask_utils
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from server_support import encoded, picture, running, tiny_decoder, tiny_model

from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.assets import assets_installed

HEIGHT, WIDTH = 300, 420  # of the picture that most tests open
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
WAIT_SECONDS = 120
FILES = (".json", ".png", ".svg", ".txt", ".zip")  # what the page downloads
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
    "--force-prefers-reduced-motion",  # what fades in has no text yet, what moves is missed
)


def find_chromium() -> tuple[str, str]:
    """Chromium and its driver; the test is skipped without them, except in CI."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser and driver and assets_installed():
        return browser, driver
    unavailable("the page's assets" if browser and driver else "chromium with chromedriver")


def unavailable(what: str) -> NoReturn:
    """Skips the test, or fails it in CI."""
    reason = f"{what} not installed; run tests/browser/install.sh"
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

    def wait_for_notice(self, text: str) -> None:
        """Waits until a notice is seen that holds the text."""
        self.wait(lambda: text in self["notices"].text, f"the notice {text!r}")

    def wait_until_kept(self) -> None:
        """Waits until the browser keeps everything that was done."""
        self.wait(lambda: self["saved"].text == "Kept in this browser", "the work to be kept")

    def log(self) -> list[str]:
        """What the page wrote to the console as errors."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def start_afresh(self, url: str) -> None:
        """The page as somebody sees it who was never there."""
        self.script("sessionStorage.clear()")
        self.driver.get("about:blank")
        kept = {"origin": url, "storageTypes": "indexeddb,local_storage"}
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", kept)
        self.driver.get(url)
        self.log()  # what came before

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
        scale, left, top = self.view
        shown = canvas.rect
        return ActionChains(self.driver, duration=0).move_to_element_with_offset(
            canvas,
            round(left + x * scale - shown["width"] / 2),
            round(top + y * scale - shown["height"] / 2),
        )

    def coco(self) -> dict[str, Any]:
        """The page's COCO file."""
        return json.loads(self.download("coco").read_text())

    def masks(self) -> list[np.ndarray]:
        """The masks of the page's COCO file, bool, in the order they were made."""
        return [mask_of(annotation) for annotation in self.coco()["annotations"]]

    @property
    def view(self) -> tuple[float, float, float]:
        """CSS pixels a pixel of the picture, and where the picture's corner is on the surface."""
        scale, left, top = map(float, self["pointer"].get_attribute("data-view").split())
        return scale, left, top

    def screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel (x, y) of the picture is in the window, in CSS pixels."""
        scale, left, top = self.view
        bounds = self["pointer"].rect
        return bounds["x"] + left + x * scale, bounds["y"] + top + y * scale

    def screenshot(self) -> np.ndarray:
        """[height, width, 3] uint8: what is seen of the picture, once it is at rest."""
        time.sleep(0.4)
        with Image.open(io.BytesIO(self["frame"].screenshot_as_png)) as found:
            return np.array(found.convert("RGB"))

    def tool(self, name: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, f"[data-tool={name}]").click()

    def keys(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

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
        button = self.driver.find_element(By.CSS_SELECTOR, f"[data-download={kind}]")
        return self.downloaded_by(button.click)

    def downloaded_by(self, act: Callable[[], Any]) -> Path:
        """The file that an act in the page downloads; its name is there before its content."""
        before = set(self.downloads.iterdir())
        act()

        def finished() -> Path | None:
            new = set(self.downloads.iterdir()) - before
            return next(
                (path for path in new if path.suffix in FILES and path.stat().st_size), None
            )

        return self.wait(finished, "the download")


def mask_of(annotation: dict[str, Any]) -> np.ndarray:
    """The mask [H, W] of a COCO annotation."""
    rle = annotation["segmentation"]
    return mask_utils.decode({**rle, "counts": rle["counts"].encode()}).astype(bool)


def downloaded_masks(page: Page) -> list[np.ndarray]:
    """The masks of the page's COCO file, in the order they were made."""
    dataset = page.coco()
    assert dataset["images"][0] == {
        "id": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "file_name": "colours.png",
    }
    masks = []
    for annotation in dataset["annotations"]:
        mask = mask_of(annotation)
        assert mask.shape == (HEIGHT, WIDTH)
        assert annotation["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        masks.append(mask)
    return masks


def axe_violations(page: Page) -> list[list[str]]:
    """What axe-core finds: rule, what it asks for, and the elements, each."""
    if not AXE.is_file():
        unavailable("axe-core")
    if not page.script("return 'axe' in window"):
        page.script(AXE.read_text("utf-8"))
    return page.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then(({violations}) => done(violations.map("
        "v => [v.id, v.help, ...v.nodes.map(n => n.html)])), error => done([[String(error)]]));"
    )


def module_url(name: str) -> str:
    """JavaScript for the address of one of the page's modules."""
    return f"new URL('{name}.js', document.querySelector('script[type=module]').src)"


def in_page(page: Page, module: str, body: str, *arguments: Any) -> Any:
    """Runs the body with a module of the page as ``module``."""
    return page.driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        f"import({module_url(module)}).then(module => done((() => {{ {body} }})()));",
        *arguments,
    )


@pytest.fixture(scope="module")  # each is half a gigabyte of processes
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


@pytest.fixture(scope="session")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return picture(1, HEIGHT, WIDTH)


@pytest.fixture(scope="session")
def file(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "colours.png"
    path.write_bytes(encoded(image))
    return path


@pytest.fixture(scope="session")
def predictor(sam: Sam, image: np.ndarray) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    return predictor


@pytest.fixture(scope="session")
def app(sam: Sam, file: Path) -> FastAPI:
    return create_app(sam, tiny_decoder(), sample=file)


@pytest.fixture(scope="session")
def url(app: FastAPI) -> Iterator[str]:
    with running(app) as url:
        yield url


@pytest.fixture
def generator_options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options that overrule those of the page: 1,024 points would take long."""
    options: dict[str, Any] = {"points_per_side": 2}
    monkeypatch.setattr(
        "samtrt.server.model.everything.SamAutomaticMaskGenerator",
        lambda sam, **given: SamAutomaticMaskGenerator(sam, **{**given, **options}),
    )
    return options


@pytest.fixture(scope="module")
def shared_page(make_page: Callable[..., Page], url: str) -> Page:
    return make_page(url)


@pytest.fixture
def page(shared_page: Page, url: str, file: Path) -> Page:
    """The page with the picture open and no masks."""
    shared_page.start_afresh(url)
    shared_page.open(file)
    return shared_page


@pytest.fixture
def gate(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The image encoder waits until it is set."""
    gate = threading.Event()
    encoder = sam.encoder

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def __call__(self, x: Any) -> Any:
            assert gate.wait(60)
            return encoder(x)

    monkeypatch.setattr(type(sam), "encoder", property(lambda _: Slow()))
    yield gate
    gate.set()

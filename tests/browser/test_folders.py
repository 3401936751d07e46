"""Folders: a real one dropped on the page, and one that is opened again after a reload."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Page
from selenium.webdriver.common.by import By
from server_support import encoded, picture

NAMES = ["1.png", "2.png", "more/3.png"]

# The browser's own chooser cannot be used by a program: a folder of the page's own file system,
# whose handle is of the same kind, takes its place. Its permission is asked for as a disk's is.
CHOOSER = """
window.showDirectoryPicker = async () => {
  const root = await navigator.storage.getDirectory();
  return root.getDirectoryHandle("pictures");
};
const name = "samtrt-test-permission";
FileSystemHandle.prototype.queryPermission = async () => localStorage.getItem(name) ?? "prompt";
FileSystemHandle.prototype.requestPermission = async () => {
  if (!navigator.userActivation.isActive) throw new DOMException("nobody asks", "SecurityError");
  return localStorage.getItem(`${name}-answer`) ?? "granted";
};
"""
FILL = """
const [files, done] = arguments;
(async () => {
  const create = {create: true};
  const root = await navigator.storage.getDirectory();
  const pictures = await root.getDirectoryHandle("pictures", create);
  for (const [path, content] of Object.entries(files)) {
    const [name, ...folders] = path.split("/").reverse();
    let folder = pictures;
    for (const part of folders.reverse()) folder = await folder.getDirectoryHandle(part, create);
    const stream = await (await folder.getFileHandle(name, create)).createWritable();
    await stream.write(Uint8Array.from(atob(content), (c) => c.charCodeAt(0)));
    await stream.close();
  }
})().then(() => done(""), (error) => done(String(error)));
"""
EMPTY = """
const [done] = arguments;
navigator.storage.getDirectory()
  .then((root) => root.removeEntry("pictures", {recursive: true}))
  .then(() => done(""), (error) => done(String(error)));
"""


def contents() -> dict[str, bytes]:
    """Path below the folder → file."""
    pictures = {name: encoded(picture(40 + n, 60, 80)) for n, name in enumerate(NAMES)}
    return {**pictures, "notes.txt": b"no picture", ".hidden.png": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name, content in contents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def chooser(shared_page: Page, url: str) -> Iterator[Page]:
    """The page in a browser that chooses the folder "pictures"."""
    driver = shared_page.driver
    source = {"source": CHOOSER}
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    shared_page.start_afresh(url)
    files = {name: base64.b64encode(content).decode() for name, content in contents().items()}
    assert driver.execute_async_script(FILL, files) == ""
    yield shared_page
    driver.execute_async_script(EMPTY)
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def listed(page: Page) -> list[str]:
    """The names in the strip."""
    buttons = page["strip-list"].find_elements(By.TAG_NAME, "button")
    return [button.get_attribute("aria-label").split(",")[0] for button in buttons]


def wait_for(page: Page, name: str) -> None:
    page.wait(
        lambda: page["picture-name"].text == name and not page["progress"].is_displayed(), name
    )


def test_a_dropped_folder(shared_page: Page, url: str, folder: Path) -> None:
    page = shared_page
    page.start_afresh(url)
    drag = {
        "x": 300,
        "y": 300,
        "data": {"items": [], "files": [str(folder)], "dragOperationsMask": 1},
    }
    for kind in ("dragEnter", "dragOver"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **drag})
    page.wait(lambda: page["drop-hint"].is_displayed(), "the hint")
    page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": "drop", **drag})
    wait_for(page, NAMES[0])
    assert listed(page) == NAMES
    assert not page["drop-hint"].is_displayed()
    page.wait_for_notice("1 file that is no picture was left out")


def test_a_folder_is_opened_again(chooser: Page) -> None:
    page = chooser
    page["choose-folder"].click()
    wait_for(page, NAMES[0])
    assert listed(page) == NAMES
    page["next"].click()
    wait_for(page, NAMES[1])
    page.click(40, 30)
    page.wait_until_kept()

    page.driver.refresh()
    wait_for(page, NAMES[1])
    assert page.count == 1 and not page["strip"].is_displayed()
    page.wait_for_notice("The other pictures of the folder “pictures” are not open yet.")
    page["notices"].find_element(
        By.XPATH, ".//button[.='Open the folder “pictures” again']"
    ).click()
    page.wait(lambda: listed(page) == NAMES, "the folder")
    assert page["strip-count"].text == "2 of 3, 0 done"
    assert page["picture-name"].text == NAMES[1] and page.count == 1  # it stayed open
    page.click(60, 20)
    page.wait_until_kept()
    page["previous"].click()
    wait_for(page, NAMES[0])

    # From the first page.
    page.driver.refresh()
    page.wait_for_notice("are not open yet.")
    page.driver.find_element(By.CLASS_NAME, "brand").click()
    page.wait(lambda: page["reopen"].is_displayed(), "the offer")
    page["reopen"].click()
    page.wait(lambda: page["panel"].is_displayed() and listed(page) == NAMES, "the folder")
    wait_for(page, NAMES[0])

    # In a browser that remembers the permission nothing is asked, and the last picture is open.
    page.script("localStorage.setItem('samtrt-test-permission', 'granted')")
    page.driver.refresh()
    page.wait(lambda: listed(page) == NAMES, "the folder")
    wait_for(page, NAMES[0])
    assert not page["notices"].text

    # Another picture, and the folder is forgotten.
    page["sample"].click()
    wait_for(page, "sample.jpg")
    page.driver.refresh()
    wait_for(page, "sample.jpg")
    assert not page["strip"].is_displayed() and not page["notices"].text


def test_another_day(chooser: Page) -> None:
    page = chooser
    page["choose-folder"].click()
    wait_for(page, NAMES[0])
    page["next"].click()
    wait_for(page, NAMES[1])
    page.script(
        "sessionStorage.clear(); localStorage.setItem('samtrt-test-permission-answer', 'denied')"
    )
    page.driver.refresh()
    page.wait(lambda: page["reopen"].is_displayed(), "the offer")
    assert page["reopen"].text == "Open the folder “pictures” again"
    page["reopen"].click()
    page.wait_for_notice("The folder “pictures” stays closed")
    page.script("localStorage.removeItem('samtrt-test-permission-answer')")
    page["reopen"].click()
    wait_for(page, NAMES[1])
    assert listed(page) == NAMES

    # A folder that is gone.
    page.script("sessionStorage.clear()")
    page.driver.execute_async_script(EMPTY)
    page.driver.refresh()
    page.wait(lambda: page["reopen"].is_displayed(), "the offer")
    page["reopen"].click()
    page.wait_for_notice("The folder “pictures” is not where it was.")

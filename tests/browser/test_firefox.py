"""The page in Firefox: the same masks, zoom, brush, keys and files; axe-core has nothing to say.

Firefox is driven by WebDriver BiDi, which it speaks itself: no distribution packages geckodriver.
"""

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket
from conftest import AXE, WAIT_SECONDS, mask_of, unavailable
from scipy.ndimage import binary_erosion

from samtrt.masks.predictor import SamPredictor

ARROW_LEFT, ENTER = "\ue012", "\ue007"
PRESS, RELEASE = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}


class Firefox:
    """A headless Firefox and what it says on its WebSocket.

    Args:
        browser: the program.
        profile: an empty folder.
        downloads: where its downloads go.
    """

    def __init__(self, browser: str, profile: Path, downloads: Path) -> None:
        preferences = {"browser.download.folderList": 2, "browser.download.dir": str(downloads)}
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in preferences.items()]
        (profile / "user.js").write_text("\n".join(lines))
        self.downloads = downloads
        self.errors: list[str] = []
        self._ids = itertools.count(1)
        self._log = (profile / "stderr.txt").open("w+")
        arguments = ["--headless", "--no-remote", "--width", "1440", "--height", "900"]
        self._process = subprocess.Popen(
            [browser, *arguments, "--remote-debugging-port", "0", "--profile", str(profile)],
            stderr=self._log,
        )

    def connect(self) -> None:
        address = self.wait(self._address, "Firefox")
        self._socket = websocket.create_connection(
            f"{address}/session", timeout=WAIT_SECONDS, suppress_origin=True
        )
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["log.entryAdded"])
        tree = self.call("browsingContext.getTree")
        self.context = tree["contexts"][0]["context"]

    def _address(self) -> str | None:
        self._log.seek(0)
        found = [line.split()[-1] for line in self._log if "BiDi listening on" in line]
        return found[0] if found else None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]
            if message.get("params", {}).get("level") == "error":
                self.errors.append(message["params"]["text"])

    def wait(self, condition: Any, what: str) -> Any:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.1)
        pytest.fail(f"waited for {what}; the console says {self.errors}")

    def script(self, expression: str) -> Any:
        """What a JavaScript expression, or its promise, gives."""
        found = self.call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression}) ?? null))()",
            target={"context": self.context},
            awaitPromise=True,
        )
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])

    def act(self, kind: str, *actions: dict[str, Any]) -> None:
        source = {"type": kind, "id": kind, "actions": list(actions)}
        self.call("input.performActions", context=self.context, actions=[source])

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.act("key", {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    # The page

    def text(self, name: str) -> str:
        return self.script(f"document.getElementById('{name}').textContent")

    def view(self) -> list[float]:
        return self.script("document.getElementById('pointer').dataset.view.split(' ').map(Number)")

    def place(self, x: float, y: float) -> dict[str, int]:
        """Where a pixel of the picture is in the window."""
        scale, left, top = self.view()
        box = self.script("document.getElementById('pointer').getBoundingClientRect()")
        return {"x": round(box["x"] + left + x * scale), "y": round(box["y"] + top + y * scale)}

    def over(self, x: float, y: float) -> dict[str, Any]:
        return {"type": "pointerMove", **self.place(x, y)}

    def open(self, file: Path) -> None:
        locator = {"type": "css", "value": "#file"}
        found = self.call("browsingContext.locateNodes", context=self.context, locator=locator)
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        self.call("input.setFiles", context=self.context, element=element, files=[str(file)])
        is_open = (
            "!document.getElementById('frame').hidden"
            " && document.getElementById('progress').hidden"
            " && !!document.getElementById('pointer').dataset.view"
        )
        self.wait(lambda: self.script(is_open), "the picture")

    def masks(self) -> list[np.ndarray]:
        before = set(self.downloads.glob("*.json"))
        self.script("document.querySelector('[data-download=coco]').click()")
        path = self.wait(lambda: set(self.downloads.glob("*.json")) - before, "the file").pop()
        text = self.wait(path.read_text, "what is in the file")
        return [mask_of(annotation) for annotation in json.loads(text)["annotations"]]

    def axe(self) -> list[list[str]]:
        target = {"context": self.context}
        source = AXE.read_text("utf-8") + ";0"
        self.call("script.evaluate", expression=source, target=target, awaitPromise=False)
        return self.script(
            "axe.run().then(r => r.violations.map(v => [v.id, ...v.nodes.map(n => n.html)]))"
        )


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    browser = shutil.which("firefox") or shutil.which("firefox-esr")
    if browser is None:
        pytest.skip("firefox is not installed; run tests/browser/install.sh")
    if not AXE.is_file():
        unavailable("axe-core")
    for name in ("profile", "downloads"):
        (tmp_path / name).mkdir()
    started = Firefox(browser, tmp_path / "profile", tmp_path / "downloads")
    try:
        started.connect()
        yield started
    finally:
        started.close()


def test_firefox(firefox: Firefox, url: str, file: Path, predictor: SamPredictor) -> None:
    page = firefox
    page.call("browsingContext.navigate", context=page.context, url=url, wait="complete")
    page.wait(lambda: page.text("limits"), "the start")
    assert page.axe() == []

    page.open(file)
    page.act("pointer", page.over(100, 80), PRESS, RELEASE)
    page.wait(lambda: page.text("count") == "1", "the mask of a click")
    masks, scores, _ = predictor.predict(np.array([(100, 80)]), np.array([1]))
    expected = masks[int(np.argmax(scores))]
    (first,) = page.masks()
    assert (first ^ expected).sum() < 0.01 * expected.sum()

    scale = page.view()[0]
    page.act("wheel", {"type": "scroll", **page.place(200, 150), "deltaX": 0, "deltaY": -300})
    page.wait(lambda: page.view()[0] > 1.2 * scale, "the zoom")
    page.keys("p")
    page.act("pointer", page.over(200, 150), PRESS, page.over(230, 150), RELEASE)
    page.wait(lambda: "drawn" in page.text("list"), "the stroke")
    (painted,) = page.masks()
    line = np.zeros_like(painted)
    line[150, 201:229] = True
    assert painted[line].all() and not (first & ~painted).any()
    assert binary_erosion(painted, iterations=2)[line].all()  # as wide as the brush

    page.keys("n", "0")
    page.script("document.getElementById('pointer').focus()")
    page.keys(ARROW_LEFT, ENTER)
    page.wait(lambda: page.text("count") == "2", "the mask of Enter")
    assert page.axe() == []
    assert page.errors == []

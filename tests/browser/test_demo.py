"""`python -m samtrt.server` with the demo model: a click on an object gives the object's mask."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Page
from documents import block_for
from PIL import Image
from pycocotools import mask as mask_utils
from scipy.ndimage import distance_transform_edt
from server_support import address_of

from samtrt.cli import commands
from samtrt.scenes.drawing import SLOTS, STRIDE, generate

ROOT = Path(__file__).resolve().parents[2]
UNSEEN_SEED, SCENE = 7, 6  # fourteen objects: text, polygons, ellipses, blobs, curves
LEAST_IOU = 0.8


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, list[np.ndarray]]:
    """A scene [H, W, 3] and the true masks of its whole objects; a part is a part of one."""
    scenes = generate(UNSEEN_SEED, [SCENE])
    height, width = scenes.extent[0].tolist()
    image = scenes.images[0, :, :height, :width].permute(1, 2, 0).numpy()
    whole = [entry for entry in range(0, SLOTS, STRIDE) if scenes.valid[0, entry]]
    return image, [scenes.mask(0, entry).numpy() for entry in whole]


@pytest.fixture(scope="module")
def url(
    scene: tuple[np.ndarray, list[np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The server as the README starts it, in a folder that `make run` has filled."""
    folder = tmp_path_factory.mktemp("checkout")
    params = folder / "examples/sam/sam_models/sam_demo"
    checkpoint = ROOT / "examples/sam/sam_models/sam_demo.pth"
    commands.run(["convert", str(checkpoint), "--output-dir", str(params)])
    commands.run(["build", str(params), "--backend", "cpu", "--skip-parity-gate"])
    Image.fromarray(scene[0]).save(folder / "scene.png")

    install, *before, serve = block_for(__file__, "README.md")
    assert install.startswith("pip install -r ")  # what this environment was made by
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    for line in before:
        subprocess.run(shlex.split(line), cwd=folder, env=environment, check=True, timeout=300)
    process = subprocess.Popen(
        [*shlex.split(serve), "--sample", "scene.png", "--port", "0"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(600, process.kill)
    watchdog.start()
    try:
        yield address_of(process)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(30)


def innermost(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from its edge."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def test_a_click_gives_the_object_under_it(
    make_page: Callable[..., Page], url: str, scene: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    _, objects = scene
    assert len(objects) > 10
    page = make_page(url)
    page.wait(lambda: page["try-sample"].is_displayed(), "the sample button")
    page["try-sample"].click()
    page.wait_for_picture()
    for mask in objects:
        page.click(*innermost(mask))
    annotations = json.loads(page.download("coco").read_text())["annotations"]
    ious = []
    for annotation, expected in zip(annotations, objects, strict=True):
        rle = annotation["segmentation"]
        found = mask_utils.decode({**rle, "counts": rle["counts"].encode()}).astype(bool)
        ious.append(float((found & expected).sum() / (found | expected).sum()))
    print("IoU of each object:", *(f"{iou:.3f}" for iou in ious))
    assert min(ious) >= LEAST_IOU, ious

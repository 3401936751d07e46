"""From a checkpoint and a picture to a mask in one command, whatever the picture comes from."""

import contextlib
import io
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import to_torch
from PIL import Image
from pycocotools import mask as mask_utils
from server_support import CONFIG, SEED, encoded, picture, tiny_model

from samtrt.checkpoints.parameters import random_parameters
from samtrt.cli import commands
from samtrt.cli.parts.segment import segment
from samtrt.console import run_script
from samtrt.decoders.load import load_decoder
from samtrt.decoders.prompts import Prompt
from samtrt.encoders.load import load_encoder
from samtrt.files import CACHE_VARIABLE
from samtrt.models import cache
from samtrt.pictures import sources

POINT = ("--point", "60,70")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(to_torch(random_parameters(CONFIG, SEED).tensors), path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a cache of its own and two pictures."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for seed in (1, 2):
        (folder / f"{seed}.png").write_bytes(encoded(picture(seed)))
    return folder


def samtrt(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run_script(lambda: commands.run([*map(str, arguments)]))
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, out.getvalue(), err.getvalue()


def expected_mask(seed: int, *numbers: float, labels: list[int] | None = None) -> np.ndarray:
    model = tiny_model()
    prompt = Prompt.from_numbers(list(numbers), labels)
    engine, decoder = load_encoder(model / "engine"), load_decoder(model)
    return segment(picture(seed), prompt, engine, decoder)[0].pixels


def mask_in(path: Path) -> np.ndarray:
    return np.array(Image.open(path)) > 0


def test_checkpoint_to_mask_and_what_is_kept(here: Path, checkpoint: Path) -> None:
    run = ("run", "1.png", "--checkpoint", checkpoint, *POINT, "--backend", "cpu")
    status, _, err = samtrt(*run)
    assert status == 0, err
    assert (here / "mask.png").is_file() and (here / "mask_overlay.png").is_file()
    (kept,) = cache.kept()
    assert kept.folder.name.startswith("tiny-") and [e.backend for e in kept.engines] == ["cpu"]
    assert kept.engines[0].parity.status == "passed"
    parts = [path for path in kept.folder.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in parts if ".samtrt-" not in path.name}

    again = checkpoint.rename(checkpoint.with_name("other name.pth"))  # the content counts
    try:
        assert samtrt(*run[:3], again, *run[4:])[0] == 0
    finally:
        again.rename(checkpoint)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(cache.kept()) == 1

    engine = kept.folder / "engine-cpu" / "encoder.engine"
    engine.write_bytes(engine.read_bytes()[:-1])  # what is damaged is made again
    (here / "mask.png").unlink()
    assert samtrt(*run)[0] == 0 and (here / "mask.png").is_file()
    _, listed, _ = samtrt("models")
    assert kept.folder.name in listed and "cpu" in listed and "vit_h" in listed


@pytest.mark.parametrize(
    "line",
    [
        "1.png PARAMS --point 60,70 --point 80,90,0",
        "PARAMS --point 60,70 1.png --point 80,90,0",
        "PARAMS --point-coords 60 70 80 90 1.png --point-labels 1 0",
        "PARAMS --point-coords 60 70 --point-coords 80 90 --point-labels 1 --point-labels 0 1.png",
        "PARAMS --point-coords 60 70 --point 80,90,0 --image 1.png",
        "PARAMS --point-labels 1 0 1.png --point-coords 60,70 80,90",
    ],
)
def test_the_picture_stands_anywhere_and_points_add_up(here: Path, line: str) -> None:
    words = line.replace("PARAMS", f"--params {tiny_model()}").split()
    status, _, err = samtrt("run", *words)
    assert status == 0, err
    expected = expected_mask(1, 60, 70, 80, 90, labels=[1, 0])
    np.testing.assert_array_equal(mask_in(here / "mask.png"), expected)


def test_boxes_with_commas_or_spaces(here: Path) -> None:
    found = []
    for box in (["10,20,100,90"], ["10", "20", "100", "90", "1.png"]):
        pictures = [] if "1.png" in box else ["1.png"]
        assert samtrt("run", *pictures, "--params", tiny_model(), "--box", *box)[0] == 0
        found.append((here / "mask.png").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["1.png", "--point", "60"], 2, "expected X,Y or X,Y,LABEL"),
        (["1.png", "--point", "60,70,up"], 2, "expected X,Y or X,Y,LABEL"),
        (["1.png", "--point-coords", "here"], 2, "expected numbers"),
        (["1.png", "--point-labels", "0.5", "--point", "1,2"], 2, "expected whole numbers"),
        (["1.png", "--box", "1,2,3"], 1, "expected X0,Y0,X1,Y1"),
        (["1.png", "--box", "1,2,3,4", "--box", "1,2,3,4"], 2, "given twice"),
        (["1.png", "2.png", *POINT, "--output", "m.png"], 1, "give a folder"),
        (["none*.png", *POINT], 1, "no file matches"),
        ([".", *POINT], 1, "is a folder"),
        (["-", "-", *POINT], 1, "named twice"),
        (["1.png", *POINT, "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["1.png", *POINT, "--output", "1.png/m"], 1, "not a folder"),
    ],
)
def test_what_cannot_be_is_one_error(
    here: Path, words: list[str], status: int, message: str
) -> None:
    found, out, err = samtrt("run", *words, "--params", tiny_model())
    assert (found, out) == (status, "") and message in err.splitlines()[-1]
    assert not list(here.glob("*mask*"))


def test_a_model_is_named_once_and_known(here: Path, checkpoint: Path) -> None:
    for words, message in (
        ((), "no model is named"),
        (("--checkpoint", checkpoint, "--params", here), "both name a model"),
        (("--checkpoint", "vit_h"), "curl -LO https://"),
        (("--checkpoint", "sam_vit_b_01ec64.pth"), "curl -LO https://"),
        (("--checkpoint", "nothing.pth"), "no checkpoint at nothing.pth"),
    ):
        status, out, err = samtrt("run", "1.png", *POINT, *words)
        assert (status, out) == (1, "") and message in err and err.count("\n") == 1
    assert not (here.parent / "cache").exists()


def test_several_pictures_a_pattern_and_one_that_fails(here: Path) -> None:
    (here / "bad.png").write_text("no picture")
    (here / "deep").mkdir()
    (here / "deep" / "1.png").write_bytes(encoded(picture(3)))
    words = ("[12].png", "bad.png", "deep/1.png", "--params", tiny_model(), *POINT)
    status, out, err = samtrt("run", *words, "--output", "masks")
    assert status == 1 and "error: bad.png is not a picture" in err
    assert sorted(path.name for path in (here / "masks").iterdir()) == [
        "1-2_mask.png",
        "1-2_mask_overlay.png",
        "1_mask.png",
        "1_mask_overlay.png",
        "2_mask.png",
        "2_mask_overlay.png",
    ]
    for name, seed in (("1", 1), ("2", 2), ("1-2", 3)):
        found = mask_in(here / "masks" / f"{name}_mask.png")
        np.testing.assert_array_equal(found, expected_mask(seed, 60, 70))
    assert out.count("\npicture  ") == 3


def test_json_and_quiet(here: Path) -> None:
    words = ("run", "1.png", "--params", tiny_model(), *POINT, "--multimask")
    status, out, _ = samtrt(*words, "--json")
    record = json.loads(out)
    assert status == 0 and record["pictures"][0]["files"][0] == "mask.png"
    masks = record["pictures"][0]["masks"]
    assert len(masks) == 3
    for number, mask in enumerate(masks, 1):
        pixels = mask_utils.decode(mask["segmentation"]).astype(bool)
        np.testing.assert_array_equal(pixels, mask_in(here / f"mask_{number}.png"))
        assert pixels.sum() == mask["area"]
    (here / "mask.png").unlink()
    assert samtrt(*words, "--quiet") == (0, "", "")
    assert (here / "mask.png").is_file()


def test_output_without_suffix_and_into_a_folder(here: Path) -> None:
    words = ("run", "1.png", "--params", tiny_model(), *POINT, "--quiet", "--output")
    assert samtrt(*words, "m")[0] == 0 and (here / "m.png").is_file()
    assert samtrt(*words, "new/")[0] == 0 and (here / "new" / "1_mask.png").is_file()


def test_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.TextIOWrapper(io.BytesIO(encoded(picture(2))))
    monkeypatch.setattr(sys, "stdin", content)
    assert samtrt("run", "-", "--params", tiny_model(), *POINT)[0] == 0
    np.testing.assert_array_equal(mask_in(here / "mask.png"), expected_mask(2, 60, 70))


@pytest.fixture
def web() -> Iterator[str]:
    """A server on the loopback: pictures, and what is none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", "/photo.png")
                self.end_headers()
            elif self.path == "/file.png":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
            elif self.path == "/endless.png":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b"\0" * 65_536)
            elif self.path == "/photo.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(encoded(picture(1)))
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pictures_from_the_web(here: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--params", tiny_model(), *POINT, "--quiet")
    for name in ("photo.png", "moved.png"):
        assert samtrt("run", f"{web}/{name}", *words, "--output", "out/") == (0, "", "")
        found = mask_in(here / "out" / f"{Path(name).stem}_mask.png")
        np.testing.assert_array_equal(found, expected_mask(1, 60, 70))
    monkeypatch.setattr(sources.read_url, "__defaults__", (1 << 20, 60.0))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    for url, message in (
        (f"{web}/none.png", "404"),
        (f"{web}/file.png", "is not allowed"),
        (f"{web}/endless.png", "at most 1 MiB"),
        (f"http://127.0.0.1:{closed}/a.png", "cannot read"),
        ("http://[", "cannot read"),
    ):
        status, out, err = samtrt("run", url, *words)
        assert (status, out) == (1, "") and message in err and err.count("\n") == 1, err


def test_everything_of_a_checkpoint(here: Path, checkpoint: Path) -> None:
    words = ("everything", "1.png", "--output-dir", "out", "--points-per-side", 2)
    status, _, err = samtrt(*words, "--checkpoint", checkpoint, "--backend", "cpu")
    assert status == 0 and (here / "out" / "1.png.json").is_file(), err
    status, _, err = samtrt(*words)
    assert status == 1 and "no model is named" in err
    status, _, err = samtrt(*words, "--engine", tiny_model() / "engine")
    assert status == 1 and "--params" in err

"""Programs written for segment_anything, unedited, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_names import modules, public
from oracle import tiny_config, to_torch

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import InputError
from samtrt.pictures.reading import load_image
from samtrt.reports.peers import import_segment_anything
from samtrt.run_with import install
from samtrt.sam import sam_model_registry

ROOT = Path(__file__).parents[2]
PICTURE = sorted((ROOT / "examples/sam/images").glob("*.jpg"))[0]

# As Meta's scripts/amg.py: everything from a command line, nothing of ours.
AMG = """
import argparse, json
import numpy as np
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.utils.amg import rle_to_mask

parser = argparse.ArgumentParser()
parser.add_argument("--input")
parser.add_argument("--checkpoint")
parser.add_argument("--model-type")
parser.add_argument("--device", default="cpu")
arguments = parser.parse_args()
sam = sam_model_registry[arguments.model_type](checkpoint=arguments.checkpoint)
_ = sam.to(device=arguments.device)
generator = SamAutomaticMaskGenerator(
    sam, points_per_side=3, pred_iou_thresh=0.1, stability_score_thresh=0.5,
    stability_score_offset=0.05, output_mode="uncompressed_rle",
)
masks = generator.generate(np.asarray(Image.open(arguments.input).convert("RGB")))
print(json.dumps([[int(rle_to_mask(mask["segmentation"]).sum()), mask["area"]] for mask in masks]))
"""


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def program(folder: Path, text: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "sam_vit_b.pth"
    torch.save(to_torch(random_parameters(tiny_config(), 3).tensors), path)
    return path


def test_a_program_runs_unedited(checkpoint: Path, tmp_path: Path) -> None:
    script = program(tmp_path, AMG)
    options = ("--input", PICTURE, "--checkpoint", checkpoint, "--model-type", "vit_b")
    done = run("-m", "samtrt.run_with", script, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    from samtrt.masks.automatic import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(
        sam_model_registry["vit_b"](checkpoint),
        points_per_side=3,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.5,
        stability_score_offset=0.05,
    )
    expected = [record["area"] for record in generator.generate(load_image(PICTURE))]
    assert expected and sorted(area for _, area in found) == sorted(expected)
    assert all(pixels == area for pixels, area in found)


EVERYTHING = """
import importlib, multiprocessing, sys

def where(name):
    import segment_anything.utils.amg as amg
    return [name, amg.MaskData.__module__, __name__]

if __name__ == "__main__":
    from neighbour import NEIGHBOUR
    for name in {names}:
        module, _, attribute = name.rpartition(":")
        assert getattr(importlib.import_module(module), attribute) is not None, name
    import segment_anything.utils.amg, segment_anything
    assert segment_anything.utils.amg is sys.modules["segment_anything.utils.amg"]
    print(sys.argv[1:], NEIGHBOUR)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(where, ["spawned"])[0])
"""


def public_names() -> list[str]:
    package = import_segment_anything()
    found = []
    for name in modules():
        path = f"{package.__name__}.{name}" if name else package.__name__
        module = __import__(path, fromlist=["_"])
        found += [f"{path}:{attribute}" for attribute, _ in public(module)]
    return found


def test_every_name_is_imported_and_spawned_processes_see_it_too(tmp_path: Path) -> None:
    names = public_names()
    assert len(names) > 60
    program(tmp_path, "NEIGHBOUR = 'beside it'", "neighbour.py")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    script = program(tmp_path, EVERYTHING.replace("{names}", repr(names)))
    done = run("-m", "samtrt.run_with", script, "-m", "--as", "1", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['-m', '--as', '1'] beside it",
        "['spawned', 'samtrt.masks.mask_data', '__mp_main__']",
    ]


PACKAGE = """
import sys
from .inner import NAME
import segment_anything
print(NAME, segment_anything.__name__, __name__, sys.argv[1:])
sys.exit(3)
"""


def test_a_module_runs_too(tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    program(tmp_path, "", "tool/__init__.py")
    program(tmp_path, "NAME = 'inner'", "tool/inner.py")
    program(tmp_path, PACKAGE, "tool/__main__.py")
    done = run("-m", "samtrt.run_with", "-m", "tool", "--flag", folder=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "inner samtrt.segment_anything __main__ ['--flag']\n"


FORKS = """
import sys
import pickle
from mobile_sam import SamPredictor, sam_model_registry
from mobile_sam.utils.transforms import ResizeLongestSide
from segment_anything_hq.modeling.transformer import TwoWayTransformer
import segment_anything_hq.modeling, mobile_sam.modeling.sam

assert mobile_sam.modeling.sam is sys.modules["mobile_sam.modeling.sam"]
assert segment_anything_hq.modeling.TwoWayTransformer is TwoWayTransformer
assert pickle.loads(pickle.dumps(ResizeLongestSide)) is ResizeLongestSide
for line in (
    "from mobile_sam import build_sam_vit_t",
    "from mobile_sam.modeling.tiny_vit_sam import TinyViT",
    "sam_model_registry['vit_t']",
    "from segment_anything_hq import SamPredictor",
    "from segment_anything_hq.modeling import ImageEncoderViT",
    "from segment_anything_hq.modeling.mask_decoder_hq import MaskDecoderHQ",
    "from segment_anything_hq import nonsense",
):
    try:
        exec(line)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("no error", line)
"""


def test_the_shared_parts_of_forks(tmp_path: Path) -> None:
    done = run(
        *("-m", "samtrt.run_with", "--as", "mobile_sam", "--as", "segment_anything_hq"),
        program(tmp_path, FORKS),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    expected = [
        ("ImportError", "mobile_sam.build_sam_vit_t", "mobile_sam"),
        ("ModuleNotFoundError", "mobile_sam.modeling.tiny_vit_sam", "mobile_sam"),
        ("SamtrtError", "the model 'vit_t'", "mobile_sam"),
        ("ImportError", "segment_anything_hq.SamPredictor", "segment_anything_hq"),
        ("ImportError", "segment_anything_hq.modeling.ImageEncoderViT", "segment_anything_hq"),
        (
            "ModuleNotFoundError",
            "segment_anything_hq.modeling.mask_decoder_hq",
            "segment_anything_hq",
        ),
    ]
    assert refused == [
        f"{kind} {what} is not the same as Meta's, and samtrt does not stand for it; run this "
        f"program with {name} itself"
        for kind, what, name in expected
    ]
    assert last.startswith("ImportError cannot import name 'nonsense'")


LATE = """
from samtrt.errors import SamtrtError
from samtrt.reports.peers import import_segment_anything
import samtrt, sys

meta = import_segment_anything()
try:
    samtrt.install()
except SamtrtError as error:
    print(error)
assert sys.modules["segment_anything"] is meta
ours = samtrt.install(force=True)
import segment_anything.modeling.common as common
import segment_anything
print(segment_anything is ours, common.__name__)
assert samtrt.install() is ours
try:
    import_segment_anything()
except SamtrtError as error:
    print(error)
"""


def test_another_package_of_that_name(tmp_path: Path) -> None:
    done = run(program(tmp_path, LATE), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    refusal, forced, comparison = done.stdout.splitlines()
    assert refusal.startswith("segment_anything has been imported already, from ")
    assert refusal.endswith("before anything imports it, or with force=True")
    assert forced == "True samtrt.segment_anything.modeling.common"
    assert "in the place of Meta's package" in comparison


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no program is named"),
        (("-m",), "no program is named"),
        (("--as", "mobile_sam", "x.py"), "no script at x.py"),
        (("--as", "sam2", "-m", "json"), "'sam2' is not one of the packages"),
        (("--as",), "'' is not one of the packages"),
        (("absent.py",), "no script at absent.py"),
        (("-m", "absent.module"), "no module absent.module that can be run"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, monkeypatch: Any) -> None:
    from samtrt import run_with

    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(run_with, "install", lambda name: None)
    with pytest.raises(InputError, match=message):
        run_with.main(arguments)


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    done = run("-m", "samtrt.run_with", "absent.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no script at absent.py") and done.stderr.count("\n") == 1


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of segment_anything, mobile_sam"):
        install("sam2")

"""Whatever the README shows is run: each block verbatim, in a copy of the examples.

The stand-in for Meta's checkpoint and for the demo's is a tiny seeded one of the same name and
layout, so that the blocks take seconds; other tests run the demo. A block that another test runs
carries a comment that names the test.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import tiny_config, to_torch
from PIL import Image

from samtrt.checkpoints.parameters import random_parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES_README = (ROOT / "examples/sam/README.md").read_text("utf-8")
BLOCK = re.compile(
    r"(?:<!-- run by (?P<elsewhere>\S+) -->\n)?```(?P<language>sh|python)\n(?P<code>.*?)```", re.S
)
MAKE_TARGETS = {"make run\n", "make test\n"}  # CI runs the one, and is the other


def blocks(text: str) -> list[dict[str, str]]:
    return [match.groupdict() for match in BLOCK.finditer(text)]


def shell_blocks(text: str) -> list[str]:
    return [
        block["code"]
        for block in blocks(text)
        if block["language"] == "sh"
        and not block["elsewhere"]
        and block["code"] not in MAKE_TARGETS
    ]


def python_blocks(text: str) -> list[str]:
    return [block["code"] for block in blocks(text) if block["language"] == "python"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's examples with the checkpoint that the README asks for."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "examples",
        root / "examples",
        ignore=shutil.ignore_patterns("sam_models", "outputs", "__pycache__"),
    )
    (root / "training").symlink_to(ROOT / "training")
    models = root / "examples/sam/sam_models"
    models.mkdir()
    parameters = random_parameters(tiny_config(img_size=256))
    for name in ("sam_vit_h_4b8939.pth", "sam_demo.pth"):
        torch.save(to_torch(parameters.tensors), models / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for script, *arguments in (
        ("params_convert.py", "--checkpoint", models / "sam_demo.pth"),
        ("build.py", "--skip-parity-gate"),
    ):
        command = [sys.executable, root / "examples/sam" / script, *arguments]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    (root / "photos").mkdir()
    picture = Image.open(ROOT / "examples/sam/images/demo.jpg")
    picture.resize((192, 128)).save(root / "photos/picture.png")
    return root


def run_in_shell(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", code],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_all_kinds_of_block_are_there() -> None:
    assert {block["code"] for block in blocks(README)} >= MAKE_TARGETS
    assert len(shell_blocks(README)) >= 3
    assert len(python_blocks(README)) >= 2
    assert len(shell_blocks(EXAMPLES_README)) >= 3


def run_blocks(text: str, folder: Path) -> None:
    for code in shell_blocks(text):
        done = run_in_shell(code, folder)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_shell_blocks_in_order(checkout: Path) -> None:
    run_blocks(README, checkout)
    engine = checkout / "examples/sam/sam_models/sam_vit_h_4b8939/engine"
    assert (engine / "encoder.json").is_file()
    assert (checkout / "examples/sam/outputs/mask.png").is_file()
    assert list((checkout / "masks").rglob("*.json"))


@pytest.mark.slow
def test_examples_readme(checkout: Path) -> None:
    run_blocks(EXAMPLES_README, checkout)
    outputs = checkout / "examples/sam/outputs"
    for name in ("box.png", "compare.json", "benchmark.png", "evaluate.json"):
        assert (outputs / name).is_file(), name


def test_python_blocks_in_order(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    image = np.asarray(Image.open("photos/picture.png").convert("RGB"))
    names = {
        "image": image,
        "points": np.array([[90.0, 60.0]]),
        "labels": np.array([1]),
    }
    for code in python_blocks(README):
        exec(code, names)
    masks, scores = names["masks"], names["scores"]
    assert masks.shape == (3, *image.shape[:2]) and masks.dtype == bool
    assert scores.shape == (3,)
    assert isinstance(names["records"], list)


@pytest.mark.parametrize(
    "block", [block for block in blocks(README) if block["elsewhere"]], ids=lambda b: b["elsewhere"]
)
def test_blocks_run_elsewhere_name_a_test(block: dict[str, str]) -> None:
    test = ROOT / block["elsewhere"]
    assert test.is_file()
    last = re.findall(r"python (?:-m )?(\S+)", block["code"])[-1]
    assert Path(last).name.removesuffix(".py") in test.read_text("utf-8")


def test_speed_table_is_the_records() -> None:
    command = [sys.executable, ROOT / "benchmarks/report.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", README)):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

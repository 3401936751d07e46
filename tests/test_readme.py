"""Whatever the README shows is run: each block verbatim, in a copy of the examples.

The stand-in for Meta's checkpoint and for the demo's is a tiny seeded one of the same name and
layout, so that the blocks take seconds; other tests run the demo. A block that another test runs
carries a comment that names the test.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import BLOCK, ROOT, blocks
from oracle import tiny_config, to_torch
from PIL import Image

from samtrt.building.accuracy import ErrorStatistics
from samtrt.checkpoints.parameters import random_parameters
from samtrt.files import CACHE_VARIABLE
from samtrt.reports.benchmarking import Timing
from samtrt.reports.comparison import Accuracy, Speed, accuracy_table, speed_table

README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES_README = "examples/sam/README.md"
# Their tests take these blocks from the README, and fail when they are not there.
ELSEWHERE = {"tests/browser/test_demo.py", "tests/benchmarks/test_benchmark_report.py"}
PACKAGE = ROOT / "samtrt"
MAKE_TARGETS = {"make run\n", "make test\n"}  # CI runs the one, and is the other


def shell_blocks(document: str) -> list[str]:
    return [
        block["code"]
        for block in blocks(document)
        if block["language"] == "sh"
        and not block["elsewhere"]
        and block["code"] not in MAKE_TARGETS
    ]


def python_blocks(document: str) -> list[str]:
    return [block["code"] for block in blocks(document) if block["language"] == "python"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's examples with the checkpoint that the README asks for."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "examples",
        root / "examples",
        ignore=shutil.ignore_patterns("sam_models", "outputs", "__pycache__"),
    )
    models = root / "examples/sam/sam_models"
    models.mkdir()
    parameters = random_parameters(tiny_config(img_size=256))
    for path in (
        models / "sam_vit_h_4b8939.pth",
        models / "sam_demo.pth",
        root / "sam_vit_b_01ec64.pth",
    ):
        torch.save(to_torch(parameters.tensors), path)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "activate").touch()  # this environment is the one that is active
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
    shutil.copyfile(ROOT / "examples/sam/images/demo.jpg", root / "photo.jpg")
    return root


def run_in_shell(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", code],
        cwd=folder,
        env={**os.environ, "PATH": path, CACHE_VARIABLE: str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_all_kinds_of_block_are_there() -> None:
    assert {block["code"] for block in blocks("README.md")} >= MAKE_TARGETS
    assert len(shell_blocks("README.md")) >= 3
    assert len(python_blocks("README.md")) >= 2
    assert len(shell_blocks(EXAMPLES_README)) >= 3


def run_blocks(document: str, folder: Path) -> None:
    for code in shell_blocks(document):
        done = run_in_shell(code, folder)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_shell_blocks_in_order(checkout: Path) -> None:
    run_blocks("README.md", checkout)
    engine = checkout / "examples/sam/sam_models/sam_vit_h_4b8939/engine"
    assert (engine / "encoder.json").is_file()
    assert (checkout / "examples/sam/outputs/mask.png").is_file()
    assert list((checkout / "masks").rglob("*.json"))
    assert (checkout / "mask.png").is_file()


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
    for code in python_blocks("README.md"):
        exec(code, names)
    masks, scores = names["masks"], names["scores"]
    assert masks.shape == (3, *image.shape[:2]) and masks.dtype == bool
    assert scores.shape == (3,)
    assert isinstance(names["records"], list)


def test_blocks_run_elsewhere_are_known() -> None:
    assert {block["elsewhere"] for block in blocks("README.md") if block["elsewhere"]} == ELSEWHERE


def test_accuracy_table_is_the_records() -> None:
    record = json.loads((ROOT / "benchmarks/results/demo_accuracy_cpu.json").read_text("utf-8"))
    rows = [
        Accuracy(
            row["name"],
            ErrorStatistics(**row["embedding"]),
            row["mean_mask_iou"],
            row["worst_mask_iou"],
        )
        for row in record["rows"]
    ]
    assert accuracy_table(rows) in README


def test_cpu_table_is_the_records() -> None:
    record = json.loads((ROOT / "benchmarks/results/vit_b_cpu.json").read_text("utf-8"))
    rows = [
        Speed(row["name"], row["batch_size"], row["relative_l2"], Timing(**row["timing"]))
        for row in record["rows"]
    ]
    assert speed_table(rows) in (ROOT / "docs/cpu.md").read_text("utf-8")


def test_disk_table_is_the_records() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.disk import RECORD, table

    assert table(json.loads(RECORD.read_text("utf-8"))) in README


def test_end_to_end_figures_are_the_records() -> None:
    """As the README and docs/end_to_end.md round them."""
    record = json.loads((ROOT / "benchmarks/results/h200_end_to_end.json").read_text("utf-8"))
    prompt, everything = record["prompt"], record["everything"]
    document = (ROOT / "docs/end_to_end.md").read_text("utf-8")
    for text in (README, document):
        assert f"{prompt['first_p50']:.1f} ms" in text
        assert f"{prompt['further_p50']:.2f} ms" in text
    for name, words in (("the model's masks", "{} mask stays"), ("discs", "of which {} stay")):
        entry = everything[f"{name}, binary_mask"]
        assert f"{words.format(entry['masks'])} | {entry['p50']:.0f} ms |" in README
        assert f"| {entry['p50']:.1f} ms |" in document


def test_speed_table_is_the_records() -> None:
    command = [sys.executable, ROOT / "benchmarks/report.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_automatic_masks_table_is_the_records() -> None:
    record = json.loads((ROOT / "benchmarks/results/automatic_masks_cpu.json").read_text("utf-8"))
    document = (ROOT / "docs/end_to_end.md").read_text("utf-8")
    for name, seconds in record["cpu_seconds"].items():
        assert f"| {name} | {record['masks'][name]} | {seconds:.2f} |" in document


DOCUMENTS = [
    "README.md",
    "examples/sam/README.md",
    "training/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_are_there(document: str) -> None:
    """Paths in backquotes are from the checkout's root or the package's."""
    text = (ROOT / document).read_text("utf-8")
    named = re.findall(r"`((?:[a-z_]+/)+[\w.-]+\.(?:py|cu|cuh|json|md))`", text)
    missing = [name for name in named if not any((p / name).exists() for p in (ROOT, PACKAGE))]
    assert not missing, missing


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", README)):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

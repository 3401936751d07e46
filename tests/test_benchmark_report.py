"""The tables that documents take from benchmark records, and the benchmark's refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402


def record(*rows: dict[str, Any]) -> dict[str, Any]:
    common = {"model": "vit_h", "precision": "fp16", "relative_l2": 1.6e-3}
    return {
        "environment": {
            "cpu": "a processor",
            "torch_threads": 2,
            "gpu": "NVIDIA H200",
            "packages": {"torch": "2.11.0"},
            "python": "3.12.3",
        },
        "note": "seeded random weights",
        "command": "python benchmarks/encoder.py",
        "rows": [{**common, **row} for row in rows],
    }


def test_a_row_a_contestant_and_a_column_a_batch_size() -> None:
    text = report.table(
        record(
            {"encoder": "samtrt", "batch_size": 1, "ms_per_image": 12.248},
            {"encoder": "samtrt", "batch_size": 4, "ms_per_image": 11.783},
            {"encoder": "eager-fp16", "batch_size": 1, "ms_per_image": 43.9},
            {"encoder": "fast-bf16", "batch_size": 1, "refused": "relative L2 0.3: not timed"},
        )
    )
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "ViT-H",
        "**samtrt**",
        "fp16",
        "12.25",
        "11.78",
        "1.6e-03",
    ]
    assert [cell.strip() for cell in lines[3].split("|")[4:6]] == ["43.90", "–"]
    assert "segment_anything_fast" not in text  # what was refused has no time to show
    assert "NVIDIA H200" in lines[-1]
    assert "seeded random weights" in lines[-1]


def test_only_the_marked_part_of_a_document_changes() -> None:
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.replaced(document, "new")
    assert once == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    assert report.replaced(once, "new") == once


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("h200_vit_h*.json")), ids=lambda p: p.stem
)
def test_committed_records_are_tables(path: Path) -> None:
    loaded = json.loads(path.read_text("utf-8"))
    text = report.table(loaded)
    for row in loaded["rows"]:
        assert row["relative_l2"] <= 2 * row["meta_relative_l2"]
        assert f"{row['ms_per_image']:.2f}" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "encoder.py")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: this benchmark needs an NVIDIA GPU, and there is none"

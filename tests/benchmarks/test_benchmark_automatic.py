"""The benchmark of automatic masks: both generators on one encoder, its time taken out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.pictures.reading import save_png

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import automatic_masks  # noqa: E402


@pytest.mark.usefixtures("one_thread")
def test_both_find_the_same_number_of_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parameters(random_parameters(tiny_config(), 3), tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    save_png(tmp_path / "noise.png", noise)
    record = tmp_path / "record.json"
    options = {
        "--params": tmp_path / "model",
        "--image": tmp_path / "noise.png",
        "--points-per-side": 3,
        "--pred-iou-thresh": 0,
        "--stability-score-thresh": 0,
        "--runs": 1,
        "--output": record,
    }
    flags = [str(word) for option in options.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["automatic_masks.py", *flags])
    automatic_masks.main()
    written = json.loads(record.read_text())
    masks, seconds = written["masks"], written["cpu_seconds"]
    assert masks["samtrt"] == masks["segment_anything"] > 0
    assert all(0 < value < 60 for value in seconds.values())
    assert f"{seconds['samtrt']:.2f}" in capsys.readouterr().out

"""The clock, the table and the plot; and no time for an output that is wrong."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import tiny_config
from PIL import Image
from scripts import call_script, load_script

from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.encoders.load import encoder_from_parameters
from samtrt.encoders.protocol import ImageEncoder
from samtrt.pictures.reading import save_png
from samtrt.reports import comparison, contestants
from samtrt.reports.benchmarking import Timing, describe, environment, markdown_table, time_calls
from samtrt.reports.contestants import Contestant

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETERS = random_parameters(tiny_config(), seed=9)


def test_percentiles() -> None:
    assert Timing.of([5, 1, 2, 3, 4]) == Timing(p50=3, p90=pytest.approx(4.6), best=1, runs=5)


def test_runs_and_seconds_limit_the_clock() -> None:
    calls: list[int] = []
    assert time_calls(calls.append, warmup=2, runs=7).runs == 7
    assert calls == [0, 1, *range(7)]
    assert time_calls(calls.append, runs=10**9, seconds=0).runs == 3


def test_table_is_aligned_markdown() -> None:
    assert markdown_table(["name", "ms"], [["a", "1.25"], ["long name", "10"]]) == (
        "| name      |   ms |\n| --------- | ---: |\n| a         | 1.25 |\n| long name |   10 |"
    )


def test_environment_names_what_a_figure_depends_on() -> None:
    record = environment()
    assert record["packages"]["torch"] == torch.__version__
    assert record["torch_threads"] == torch.get_num_threads()
    without_gpu = {name: value for name, value in record.items() if name != "gpu"}
    assert record["cpu"] and describe(without_gpu).startswith(record["cpu"])
    assert describe({**record, "gpu": "a GPU"}).startswith("a GPU; torch ")
    json.dumps(record)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmark")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("model")
    save_parameters(PARAMETERS, folder)
    save_png(folder / "noise.png", np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    flags = ["--params", folder, "--image", folder / "noise.png", "--backend", "cpu"]
    return [*flags, "--runs", 3, "--seconds", 1]


def test_script_writes_table_record_and_plot(
    script: ModuleType, flags: list[object], tmp_path: Path
) -> None:
    record, plot = tmp_path / "record.json", tmp_path / "plot.png"
    status, out, err = call_script(
        script, *flags, "--batch-size", 1, 2, "--json", record, "--plot", plot
    )
    assert status == 0, err
    rows = json.loads(record.read_text())["rows"]
    measured = {(row["name"], row["batch_size"]) for row in rows}
    for name in ("segment_anything fp32", "samtrt cpu fp32"):
        assert {(name, 1), (name, 2)} <= measured
    for row in rows:
        assert row["timing"]["p90"] >= row["timing"]["p50"] >= row["timing"]["best"] > 0
        rate = 1e3 * row["batch_size"] / row["timing"]["p50"]
        assert row["images_per_second"] == pytest.approx(rate)
        assert row["name"] in out
    with Image.open(plot) as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20) or []) > 4


def test_end_to_end_by_stage(script: ModuleType, flags: list[object], tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    status, out, err = call_script(script, *flags, "--end-to-end", "--json", record)
    assert status == 0, err
    times = json.loads(record.read_text())["end_to_end"]["samtrt cpu"]
    assert times["first_p50"] > times["further_p50"] > 0
    assert all(stage in out for stage in times["stages"]) and "Host memory to host memory" in out


@pytest.mark.parametrize("ours", [True, False])
def test_a_wrong_output_is_not_timed(
    script: ModuleType,
    flags: list[object],
    ours: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong:
        img_size, device = 128, torch.device("cpu")

        def __init__(self) -> None:
            self._encoder = encoder_from_parameters(PARAMETERS, "cpu", precision="fp32")

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return 1.05 * self._encoder(x)

    def make() -> ImageEncoder:
        return Wrong()

    timed: list[object] = []
    monkeypatch.setattr(
        comparison, "time_calls", lambda *call: timed.append(call) or Timing.of([1])
    )
    wrong = Contestant("wrong", make, ours)
    monkeypatch.setattr(contestants, "our_contestants", lambda *_: [wrong])
    monkeypatch.setattr(contestants, "meta_contestants", lambda *_: [_reference()])
    record = tmp_path / "record.json"
    status, out, err = call_script(script, *flags, "--json", record)
    assert len(timed) == 1  # the reference alone
    if not ours:
        assert status == 0 and "wrong: not timed" in out
        assert [row["timing"] is None for row in json.loads(record.read_text())["rows"]] == [
            False,
            True,
        ]
        return
    line = err.splitlines()[-1]
    assert status == 1 and line.startswith("error: wrong, batch 1: its output is wrong, 5.00% off")
    assert out == "" and list(tmp_path.iterdir()) == []


def _reference() -> Contestant:
    def make() -> ImageEncoder:
        return encoder_from_parameters(PARAMETERS, "cpu", precision="fp32")

    return Contestant("right", make)

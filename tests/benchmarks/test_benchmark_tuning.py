"""The tuner's sections for Hopper on the CPU, with torch in place of the kernels."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hopper_stand_ins import global_attention, linear_layer, window_attention
from oracle import tiny_config

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.tuning import hopper, tuner
from samtrt.checkpoints.config import vit_h
from samtrt.kernels.hopper.linear import Linear, LinearTiles

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = tiny_config(embed_dim=640, num_heads=8, window_size=6)  # 64 tokens, heads of 80


class Product:
    """cuBLASLt's with a bias."""

    candidates = 3

    def __init__(self, *sizes: Any) -> None:
        pass

    def __call__(
        self, a: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        out.copy_(a @ weight.t() + (out if bias is None else bias))


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> tuner.Tuner:
    monkeypatch.setattr(hopper.linear, "linear_layer", linear_layer)
    monkeypatch.setattr(hopper.window_attention, "window_attention", window_attention)
    monkeypatch.setattr(hopper.global_attention, "global_attention", global_attention)
    monkeypatch.setattr(hopper, "Product", Product)
    monkeypatch.setattr(
        hopper,
        "event_milliseconds",
        lambda calls, repeats, warmup: [call() or 1.0 for call in calls],
    )
    monkeypatch.setattr(hopper, "make_workspace", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(tuner, "graph_microseconds", lambda calls: 10.0 * len(calls))
    torch.manual_seed(0)
    return tuner.Tuner(CONFIG, device="cpu")


@pytest.mark.parametrize(("section", "rows"), [("linear", 30), ("window", 1), ("global", 1)])
def test_what_is_right_is_timed(section: str, rows: int, instance: tuner.Tuner) -> None:
    hopper.SECTIONS[f"hopper-{section}"](instance)
    assert len(instance.rows) == rows
    for row in instance.rows:
        assert row["us"] == 10.0 * 2 * tuner.BUFFERS, row


def test_what_is_wrong_is_not(
    instance: tuner.Tuner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def incomplete(layer: Linear, tiles: LinearTiles) -> None:
        """The last row of the statistics is not written."""
        linear_layer(layer, tiles)
        layer.statistics[:, -1] *= 1 if layer.residual is None else float("nan")

    def fails(*arguments: Any) -> None:
        raise RuntimeError("no such launch")

    monkeypatch.setattr(hopper.linear, "linear_layer", incomplete)
    monkeypatch.setattr(hopper.global_attention, "global_attention", fails)
    hopper.SECTIONS["hopper-linear"](instance)
    hopper.SECTIONS["hopper-global"](instance)
    failed = [str(row["label"]) for row in instance.rows if "us" not in row]
    kernels = [label for label in failed if label.startswith(("proj", "lin2"))]
    assert len(kernels) == 12 and len(failed) == 12 + 1
    assert all("us" in row for row in instance.rows if str(row["label"]).startswith("lin1"))
    out = capsys.readouterr().out
    assert "FAILED wrong err nan" in out and "no such launch" in out


def test_every_program_of_the_sections_is_compiled_in_advance() -> None:
    programs = set(hopper.programs(vit_h(), 1, torch.float16))
    names = [program.function_name for program in programs]
    assert names.count("window_attention") == 1
    assert names.count("global_attention") == 1
    # Three tiles with each of two epilogues, four with the residual.
    assert names.count("linear") == 10

"""Channels far above the rest: the same function, and e4m3 no further from it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton_kernels  # noqa: F401 (before the kernels: it chooses Triton's interpreter)
from oracle import meta_encoder_of, relative_l2, tiny_config
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.outliers import with_outliers
from samtrt.checkpoints.parameters import Parameters, random_parameters
from samtrt.encoders.cuda.calibration import calibrated_plan
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.quantisation import LinearName

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = tiny_config(embed_dim=64, num_heads=4, depth=3, img_size=96)
PARAMETERS = random_parameters(CONFIG, 5)
PICTURES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)).split(1)


def error_of_fp8(parameters: Parameters) -> float:
    tensors = parameters.encoder()
    exact, rounded = (
        Fp8Reference(CONFIG, tensors, plan)
        for plan in (None, calibrated_plan(CONFIG, tensors, PICTURES[:1]))
    )
    exact.stream = torch.float32
    return relative_l2(rounded(PICTURES[1]), exact(PICTURES[1]))


def magnitudes(parameters: Parameters) -> dict[LinearName, Tensor]:
    read: dict[LinearName, Tensor] = {}

    def observe(linear: LinearName, x: Tensor, _: Tensor | None) -> None:
        read[linear] = x.abs().amax(0)

    Fp8Reference(CONFIG, parameters.encoder(), observe=observe)(PICTURES[1])
    return read


def test_it_is_the_same_function() -> None:
    with torch.no_grad():
        before, after = (
            meta_encoder_of(CONFIG, parameters.encoder(), torch.float64)(PICTURES[0].double())
            for parameters in (PARAMETERS, with_outliers(PARAMETERS, 60.0))
        )
    assert relative_l2(after, before) < 1e-6


@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_outliers_cost_fp8_nothing(factor: float) -> None:
    changed = with_outliers(PARAMETERS, factor)
    largest, usual = (magnitudes(p)[1, "attn.proj"] for p in (changed, PARAMETERS))
    ratio = largest / usual
    assert (ratio > 0.95 * factor).sum() == CONFIG.num_heads
    assert ratio.median().item() == pytest.approx(1, rel=0.05)
    assert error_of_fp8(changed) < 1.1 * error_of_fp8(PARAMETERS)


def test_other_parameters_are_left_alone() -> None:
    changed = with_outliers(PARAMETERS, 30.0)
    assert replace(changed, tensors={}, note="") == replace(PARAMETERS, tensors={}, note="")
    assert changed.tensors.keys() == PARAMETERS.tensors.keys()
    assert all(changed.tensors[n].shape == t.shape for n, t in PARAMETERS.tensors.items())

"""The machine code of the kernels, made here without a GPU.

What is checked costs a factor when it changes unseen: products on the warpgroup units, no spilled
registers; and the fault of ptxas 12.8 (samtrt/kernels/triton/assembler.py) stays out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from triton_kernels import DEVICE  # noqa: F401  (skips where there is no Triton)

from samtrt.kernels.triton.assembler import sound_ptxas

TESTS = Path(__file__).resolve().parents[1]
PRODUCTS = ("_linear_gelu", "_window_attention", "_relative_positions", "_global_attention")


def compiled(capability: int, *models: str) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(TESTS.parent)
    command = [sys.executable, str(TESTS / "compiled_kernels.py"), str(capability), *models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    reports: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return reports


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    return compiled(90, "vit_b", "vit_h")


def test_every_kernel_fits_hopper(kernels: list[dict[str, Any]]) -> None:
    assert len(kernels) == 10
    for kernel in kernels:
        assert kernel["spill_stores"] == 0, kernel
        assert kernel["shared_bytes"] <= 227 * 1024, kernel
        assert kernel["unwritten_uniform_registers"] == [], kernel


def test_products_run_on_the_warpgroup_units(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["mma"] == 0, kernel
        assert (kernel["wgmma"] > 0) == kernel["name"].startswith(PRODUCTS), kernel


def test_every_kernel_fits_ampere_and_ada() -> None:
    for kernel in compiled(80, "vit_h"):
        assert kernel["spill_stores"] == 0, kernel
        assert kernel["shared_bytes"] <= 99 * 1024, kernel


@pytest.mark.parametrize(
    ("default", "blackwell", "chosen"),
    [("12.8", "12.9", "blackwell"), ("13.0", "12.9", "default"), ("12.8", "12.8", None)],
)
def test_the_first_sound_ptxas_is_taken(default: str, blackwell: str, chosen: str | None) -> None:
    nvidia = SimpleNamespace(
        ptxas=SimpleNamespace(version=default, path="default"),
        ptxas_blackwell=SimpleNamespace(version=blackwell, path="blackwell"),
    )
    assert sound_ptxas(nvidia) == chosen

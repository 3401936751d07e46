"""Meta's encoder in other runtimes computes what Meta's package computes."""

import importlib.util
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import meta_image_encoder, relative_l2, tiny_config, to_torch

from samtrt.checkpoints.parameters import random_parameters
from samtrt.cli import benchmark
from samtrt.errors import InputError, SamtrtError
from samtrt.reports.runtimes import PEERS, peer_contestants

CONFIG = tiny_config(img_size=128, depth=2)  # a block of each kind
_FULL = random_parameters(CONFIG, 0)
# In halves, as those of the demo are kept.
PARAMETERS = replace(
    _FULL, tensors={name: tensor.astype(np.float16) for name, tensor in _FULL.tensors.items()}
)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "torch.compile")) for n in PEERS]
)
def test_equals_meta(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Torch's compiler imports setuptools, which will not take over a distutils that other tests
    # have imported.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    if name == "openvino":
        pytest.importorskip("openvino")
    if name == "torch.compile" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    made = peer_contestants(PARAMETERS, [name], CPU, [1, 2])
    assert made[0].name == f"{name} fp32" and not made[0].ours
    encoder = made[0].make()
    meta = meta_image_encoder(CONFIG)
    meta.load_state_dict(to_torch(PARAMETERS.encoder()))
    for batch_size in (1,) if name == "torch.compile" else (1, 2):  # it compiles for each
        x = torch.randn(batch_size, 3, 128, 128, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = meta(x)
        assert relative_l2(encoder(x), expected) < 1e-5
    assert encoder.img_size == 128 and "fp32" in encoder.computed_by


def test_peers_are_those_of_the_console() -> None:
    assert benchmark.PEERS == PEERS


def test_halves_where_the_machine_is_fast_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtrt.reports.runtimes._require", lambda *_: None)
    for fast, expected in (
        (False, ["openvino fp32", "onnxruntime fp32"]),
        (True, ["openvino fp32", "openvino bf16", "onnxruntime fp32"]),
    ):
        monkeypatch.setattr("samtrt.reports.runtimes.has_fast_bf16", lambda fast=fast: fast)
        names = ["openvino", "onnxruntime", "openvino"]
        assert [each.name for each in peer_contestants(PARAMETERS, names, CPU)] == expected


def test_what_cannot_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(InputError, match=f"{name} is compared on the CPU alone"):
            peer_contestants(PARAMETERS, [name], torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(SamtrtError, match=f"{name} is not installed; run `"):
            peer_contestants(PARAMETERS, [name], CPU)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SamtrtError, match=r"needs a C\+\+ compiler"):
        peer_contestants(PARAMETERS, ["torch.compile"], CPU)

"""What ``auto`` chooses on machines of all kinds, made up, and that it says why."""

import importlib.util
import logging

import pytest
import torch
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders import choice
from samtrt.encoders.choice import default_device, fastest_backend, why_not_cuda
from samtrt.encoders.load import encoder_from_parameters
from samtrt.errors import EngineError
from samtrt.kernels.hopper import compiler


def machine(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    triton: bool = True,
    nvrtc: bool = True,
    tensorrt: bool = False,
) -> None:
    find_spec = importlib.util.find_spec

    def missing(text: str, there: bool) -> None:
        if not there:
            raise EngineError(text)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: (
            None if name == "triton" and not triton else find_spec(name, package)
        ),
    )
    monkeypatch.setattr(compiler, "require_compiler", lambda: missing("no NVRTC here", nvrtc))
    monkeypatch.setattr(
        choice, "import_tensorrt", lambda: missing("TensorRT is not installed", tensorrt)
    )


@pytest.mark.parametrize(
    ("options", "runs", "builds", "reason"),
    [
        ({"capability": None}, "cpu", "cpu", "torch finds no NVIDIA GPU"),
        ({"capability": (9, 0)}, "cuda", "cuda", None),
        ({"capability": (8, 0), "nvrtc": False}, "cuda", "cuda", None),
        ({"capability": (12, 0), "nvrtc": False}, "cuda", "cuda", None),
        ({"capability": (9, 0), "nvrtc": False}, "cpu", "cpu", "no NVRTC here"),
        ({"capability": (8, 6), "triton": False}, "cpu", "cpu", "Triton is not installed"),
        (
            {"capability": (8, 6), "triton": False, "tensorrt": True},
            "cpu",
            "tensorrt",
            "Triton is not installed",
        ),
        ({"capability": (7, 5)}, "cpu", "cpu", "compute capability 7.5, and it needs 8.0"),
        (
            {"capability": (7, 5), "tensorrt": True},
            "cpu",
            "tensorrt",
            "compute capability 7.5, and it needs 8.0",
        ),
    ],
    ids=str,
)
def test_auto_is_the_fastest_that_runs(
    options: dict[str, object],
    runs: str,
    builds: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine(monkeypatch, **options)  # type: ignore[arg-type]
    lacking = why_not_cuda()
    assert lacking is None if reason is None else lacking is not None and reason in lacking
    with caplog.at_level(logging.INFO, "samtrt"):
        assert fastest_backend() == runs
        assert fastest_backend(builds=True) == builds
    assert default_device().type == runs
    if reason is not None and options["capability"] is not None:
        assert reason in caplog.text  # a GPU is not passed over in silence
    assert default_device("cpu").type == "cpu"
    assert default_device("cuda").type == "cuda"


def test_what_was_chosen_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(monkeypatch, (8, 6), triton=False)
    with caplog.at_level(logging.INFO, "samtrt"):
        encoder = encoder_from_parameters(random_parameters(tiny_config()), precision="fp32")
    assert encoder.device.type == "cpu"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "the CPU is used and not the GPU: Triton is not installed" in caplog.text

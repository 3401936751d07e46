"""Which GPU is meant, and that kernels run on the one of their tensors.

Where there is no GPU, torch's answers are made up.
"""

import pytest
import torch

from samtrt.errors import EngineError
from samtrt.kernels import device
from samtrt.kernels.device import launches, multiprocessors, resolved


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, current: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)


def test_a_gpu_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 3, current=2)
    assert resolved("cuda") == resolved(torch.device("cuda")) == torch.device("cuda", 2)
    assert resolved("cuda:1") == torch.device("cuda", 1)
    assert resolved("cpu") == resolved("cpu:0") == torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "name", "match"),
    [
        (0, "cuda", "cuda was asked for, and torch finds no NVIDIA GPU"),
        (1, "cuda:1", "there is 1: cuda:0"),
        (2, "cuda:7", "there are 2: cuda:0 to cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_line(
    count: int, name: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(EngineError, match=match) as error:
        resolved(name)
    assert "\n" not in str(error.value)


def test_cuda_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nUse 'spawn'")

    gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(EngineError, match=r"does not start: Cannot re-init.*Use 'spawn'") as error:
        resolved("cuda")
    assert "\n" not in str(error.value)


def test_multiprocessors_are_each_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2, current=1)

    class Properties:
        def __init__(self, index: int) -> None:
            self.multi_processor_count = (132, 78)[index]

    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    device._multiprocessors.cache_clear()
    try:
        counts = [multiprocessors(torch.device(name)) for name in ("cuda:0", "cuda:1", "cuda")]
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        assert [*counts, multiprocessors(torch.device("cuda"))] == [132, 78, 78, 132]
    finally:
        device._multiprocessors.cache_clear()
    assert multiprocessors(torch.device("cpu")) == 1


def test_kernels_run_on_the_gpu_of_their_first_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.Tensor] = []

    class DeviceOf:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

        def __enter__(self) -> None:
            entered.append(self.x)

        def __exit__(self, *_: object) -> None:
            entered.append(self.x)

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)

    @launches
    def kernel(x: torch.Tensor, scale: float, *, tiles: int = 1) -> int:
        """Its own docstring."""
        assert len(entered) == 1
        return tiles

    x = torch.zeros(1)
    assert kernel(x, 2.0, tiles=3) == 3
    assert len(entered) == 2 and entered[0] is x
    assert kernel.__doc__ == "Its own docstring."

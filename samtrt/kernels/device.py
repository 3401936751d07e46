"""Devices: which one is meant, what a launch asks about it, how it becomes the current one."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from samtrt.errors import EngineError

_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")


def resolved(device: torch.device | str) -> torch.device:
    """A device as its tensors name it: ``"cuda"`` gets the index of the current GPU, now.

    Raises:
        EngineError: there is no such GPU, or CUDA does not start, as in a process that was forked
            from one that uses it.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return torch.device(device.type)
    if not torch.cuda.is_available():
        raise EngineError(
            f"{device} was asked for, and torch finds no NVIDIA GPU here; "
            "use --backend cpu on this machine"
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:
        raise EngineError(f"CUDA does not start: {' '.join(str(error).split())}") from error
    index = torch.cuda.current_device() if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise EngineError(
            f"{device} was asked for, and there {'is' if count == 1 else 'are'} {count}: "
            f"cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}"
        )
    return torch.device("cuda", index)


def launches(
    function: Callable[Concatenate[Tensor, _Rest], _Result],
) -> Callable[Concatenate[Tensor, _Rest], _Result]:
    """For functions that launch kernels: on the GPU of their first argument, and its current
    stream, whichever GPU is the current one. Does nothing for a tensor on the CPU."""

    @wraps(function)
    def on_its_device(x: Tensor, *args: _Rest.args, **kwargs: _Rest.kwargs) -> _Result:
        with torch.cuda.device_of(x):
            return function(x, *args, **kwargs)

    return on_its_device


def architecture(device: torch.device) -> str:
    """What a GPU's machine code is for, as ``"sm_90"``; ``"interpreter"`` for the CPU."""
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return 1
    return _multiprocessors(resolved(device).index if device.index is None else device.index)


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count

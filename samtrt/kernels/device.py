"""What a launch asks about its device."""

from functools import cache

import torch


def architecture(device: torch.device) -> str:
    """What a GPU's machine code is for, as ``"sm_90"``; ``"interpreter"`` for the CPU."""
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count

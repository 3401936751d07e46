"""Masks from a GPU into host memory of the caller's own."""

import numpy as np
import torch
from torch import Tensor

# Page-locked memory that a transfer goes through, in bytes.
_PART_BYTES = 1 << 20


def to_host(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Copies in ordinary host memory, which nobody else holds; waits for them.

    From a GPU in parts: one is copied out of page-locked memory by all CPU threads while the
    next crosses the bus. Page-locked blocks are never handed out: held masks would pin memory
    that the system can then neither move nor swap.
    """
    # NumPy asks the system for huge pages for large arrays: far fewer page faults.
    found: tuple[np.ndarray, ...] = tuple(
        np.empty(tensor.shape, dtype=_NUMPY[tensor.dtype]) for tensor in tensors
    )
    under_way = []
    for tensor, array in zip(tensors, found, strict=True):
        target = torch.from_numpy(array).view(-1)
        source = tensor.detach().contiguous().view(-1)
        if source.is_cuda:
            under_way += _start(source, target)
            target.zero_()  # the pages are mapped by all CPU threads while the GPU is at work
        else:
            target.copy_(source)
    for part, locked, arrived in under_way:
        arrived.synchronize()
        part.copy_(locked)
    return found


def _start(source: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor, torch.cuda.Event]]:
    """Queues the transfer of [n] numbers: parts of the target, page-locked ones, arrivals."""
    locked = torch.empty(len(source), dtype=source.dtype, device="cpu", pin_memory=True)
    step = max(1, _PART_BYTES // source.element_size())
    under_way = []
    with torch.cuda.device(source.device):
        for parts in zip(*(x.split(step) for x in (source, target, locked)), strict=True):
            parts[2].copy_(parts[0], non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            under_way.append((parts[1], parts[2], arrived))
    return under_way


_NUMPY = {torch.bool: np.bool_, torch.float32: np.float32}

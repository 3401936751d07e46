"""Masks from a GPU into host memory of the caller's own."""

import numpy as np
import torch
from torch import Tensor

# What is copied out of page-locked memory at once, in bytes: each part costs an event.
_PART_BYTES = 2 << 20
_PAGE_BYTES = 4096


def to_host(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Copies in ordinary host memory, which nobody else holds; waits for them.

    From a GPU in parts: one is copied out of page-locked memory while the next crosses the bus.
    Page-locked blocks are never handed out: held masks would pin memory that the system can then
    neither move nor swap.

    Args:
        tensors: bool or float32.
    """
    # NumPy asks the system for huge pages for large arrays: far fewer page faults.
    found: tuple[np.ndarray, ...] = tuple(
        np.empty(tensor.shape, dtype=_NUMPY[tensor.dtype]) for tensor in tensors
    )
    pairs = [
        (_bytes(tensor.detach()), _bytes(torch.from_numpy(array)))
        for tensor, array in zip(tensors, found, strict=True)
    ]
    under_way: list[_Arrival] = []
    for device in dict.fromkeys(source.device for source, _ in pairs if source.is_cuda):
        under_way += _start([pair for pair in pairs if pair[0].device == device])
    for source, target in pairs:
        if not source.is_cuda:
            target.copy_(source)
    _copy_out(under_way)
    return found


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


# An event, and what is in page-locked memory after it: [n] bytes each, and where they belong.
_Arrival = tuple[torch.cuda.Event, list[tuple[Tensor, Tensor]]]


def _start(pairs: list[tuple[Tensor, Tensor]]) -> list[_Arrival]:
    """Queues the transfer of sources, on one GPU, to targets, [n] bytes each; small ones first."""
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    device, total = pairs[0][0].device, sum(len(source) for source, _ in pairs)
    block = torch.empty(total, dtype=torch.uint8, device="cpu", pin_memory=True)
    under_way: list[_Arrival] = []
    parts: list[tuple[Tensor, Tensor]] = []
    first = since = 0
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        for source, target in pairs:
            for few, own in zip(source.split(_PART_BYTES), target.split(_PART_BYTES), strict=True):
                locked = block[first : first + len(few)]
                locked.copy_(few, non_blocking=True)
                parts.append((locked, own))
                first += len(few)
                if first - since >= _PART_BYTES or first == total:
                    arrived = torch.cuda.Event()
                    arrived.record(stream)
                    under_way.append((arrived, parts))
                    parts, since = [], first
    return under_way


def _copy_out(under_way: list[_Arrival]) -> None:
    """Waits for each part and copies it to its target; while it waits, it has the system map the
    pages of targets to come.

    By NumPy, in this thread: torch's copies start one on every core and wait for all, which takes
    long where other processes have the cores (docs/end_to_end.md).
    """
    arrivals = [
        (arrived, [(locked.numpy(), target.numpy()) for locked, target in parts])
        for arrived, parts in under_way
    ]
    targets = [target for _, parts in arrivals for _, target in parts]
    mapped = copied = 0
    for arrived, parts in arrivals:
        while mapped < len(targets) and not arrived.query():
            targets[mapped][::_PAGE_BYTES] = 0
            mapped += 1
        arrived.synchronize()
        for locked, target in parts:
            np.copyto(target, locked)
        copied += len(parts)
        mapped = max(mapped, copied)


_NUMPY = {torch.bool: np.bool_, torch.float32: np.float32}

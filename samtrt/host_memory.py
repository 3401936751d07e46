"""Copies within host memory by a few threads that never wait for one another's turn.

torch's own copies start a thread on every core and wait for all: where other processes have the
cores, a copy of 6 MB takes a hundred milliseconds in place of half a one. Here the caller does
whatever nobody has begun.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import numpy.typing as npt

HELPERS = 3  # beside the caller: four threads fill the memory's bandwidth, or nearly
_LEAST_BYTES = 256 << 10  # of a piece: less is copied sooner than a thread wakes up
_PAGE_BYTES = 4096

Bytes = npt.NDArray[np.uint8]
Mapping = list["Future[None]"]


def copy(target: Bytes, source: Bytes) -> None:
    """``target[:] = source``, [n] bytes each, which do not overlap; returns when it is done."""
    pieces = zip(_pieces(target), _pieces(source), strict=True)
    together([partial(np.copyto, *piece) for piece in pieces])


def begin_mapping(target: Bytes) -> Mapping:
    """Has the system map the pages of new memory, [n] bytes, whose content is lost, while the
    caller waits for what belongs there. Small ones are left as they are."""
    if len(target) < _LEAST_BYTES:
        return []
    helpers = _helpers(os.getpid())
    return [helpers.submit(_touch, piece) for piece in _pieces(target)]


def end_mapping(mapping: Mapping) -> None:
    """No helper writes to the memory any more, when this returns."""
    for touching in reversed(mapping):
        if not touching.cancel():
            touching.result()


def _touch(target: Bytes) -> None:
    target[::_PAGE_BYTES] = 0


def _pieces(x: Bytes) -> list[Bytes]:
    return np.array_split(x, max(1, min(HELPERS + 1, len(x) // _LEAST_BYTES)))


def together(tasks: Sequence[Callable[[], object]]) -> None:
    """Calls all, and returns when they have ended; those that no helper has begun in this thread.

    Tasks release Python's lock for the most part, as NumPy's copies do.
    """
    first, *others = tasks
    helpers = _helpers(os.getpid()) if others else None
    begun = [(helpers.submit(task), task) for task in others] if helpers else []
    first()
    for future, task in reversed(begun):
        if future.cancel():
            task()
    for future, _ in begun:
        if not future.cancelled():
            future.result()


@cache
def _helpers(process: int) -> ThreadPoolExecutor:
    """Of this process: a forked one has none of its parent's threads."""
    return ThreadPoolExecutor(HELPERS, thread_name_prefix="samtrt-copy")

"""What the server keeps in memory, and what it gives back."""

import ctypes
import sys
import threading
import time
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

_INTERVAL = 0.5  # seconds between two passes over the heap, which take milliseconds each

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_last = 0.0


class Sized(Protocol):
    """What knows its own size."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class LRUCache(Generic[Value]):
    """Keeps values until their bytes pass ``capacity``; then the least recently used leave.

    Safe to use from several threads.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._bytes = 0
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """The value, which becomes the most recently used; None where it is not kept."""
        with self._lock:
            value = self._values.get(key)
            if value is None:
                self.misses += 1
                return None
            self.hits += 1
            self._values.move_to_end(key)
            return value

    def put(self, key: str, value: Value) -> None:
        """Keeps the value, unless it alone is larger than the capacity."""
        with self._lock:
            old = self._values.pop(key, None)
            if old is not None:
                self._bytes -= old.nbytes
            if value.nbytes > self.capacity:
                return
            self._values[key] = value
            self._bytes += value.nbytes
            while self._bytes > self.capacity:
                _, evicted = self._values.popitem(last=False)
                self._bytes -= evicted.nbytes
                self.evictions += 1


def release() -> None:
    """Lets glibc give back the pages that it holds free.

    Automatic masks of large pictures leave holes of tens of megabytes between small results that
    are kept; glibc reuses few of them, and gives none back by itself: twenty megabytes a mask.
    """
    global _last
    now = time.monotonic()
    if _trim is not None and now - _last > _INTERVAL:
        _last = now
        _trim(0)

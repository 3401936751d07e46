"""Freed memory goes back to the system."""

import ctypes
import sys
import time

_INTERVAL = 0.5  # seconds between two passes over the heap, which take milliseconds each

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_last = 0.0


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

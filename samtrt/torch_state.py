"""The caller's torch settings are the caller's: what we compute does not change with them."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def as_written() -> Iterator[None]:
    """Computes in the precision that the code says, without gradients, on ordinary tensors.

    Autocast would round products, and tensors made in inference mode could not be written to
    outside of it, as kept buffers are. The default dtype and device belong to the whole process
    and are never changed: code below names its own.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def any_algorithm() -> Iterator[None]:
    """Lets torch choose algorithms that `use_deterministic_algorithms` refuses without the
    environment variables that it asks for.

    That mode belongs to the whole process, so this is for the first call of a shape alone, and
    for one thread at a time. The matrix products it is about repeat to the bit on one stream.
    """
    with _ONE_AT_A_TIME:
        mode = torch.get_deterministic_debug_mode()
        if mode:
            torch.set_deterministic_debug_mode("default")
        try:
            yield
        finally:
            if mode:
                torch.set_deterministic_debug_mode(mode)


_ONE_AT_A_TIME = threading.RLock()

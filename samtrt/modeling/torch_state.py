"""The caller's torch settings are the caller's: what we compute does not change with them."""

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

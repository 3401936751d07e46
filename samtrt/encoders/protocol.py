"""What every image encoder is, whatever runs it: one call, one check of its input."""

import os
import weakref
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from samtrt.errors import EngineError, InputError


@runtime_checkable
class ImageEncoder(Protocol):
    """SAM's image encoder, ready to run.

    Attributes:
        img_size: side S of the square input, in pixels.
        device: where the input must be and the output will be.
        computed_by: what makes the embedding's numbers, beside the picture and the parameters:
            backend, precision and the version of what runs, as
            ``"cuda fp16 hopper sm_90 3f2a91c07e55"``. Where this and the parameters are the same,
            embeddings differ in the rounding of sums at most.
    """

    img_size: int
    device: torch.device

    @property
    def computed_by(self) -> str:
        """See above."""

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32.

        Any thread may call, on any stream, in any of torch's modes: autocast, inference mode,
        default types and devices and deterministic algorithms change nothing, and no gradient
        flows through it. The work is queued on the current stream of ``device``, and the output
        belongs to the caller.

        Raises:
            InputError: another shape, dtype or device than that.
        """
        ...


class NotCopied:
    """For what lives on a GPU: copying and pickling say why they cannot be."""

    def __reduce_ex__(self, protocol: object) -> str:
        raise EngineError(
            f"a {type(self).__name__} holds a GPU's memory and programs, which cannot be copied or "
            "pickled; make another from the same parameters or engine, or copy the Sam that has it"
        )


def check_process(process: int) -> None:
    """Refuses a GPU's encoder in another process than the one of that id, which made it.

    Raises:
        EngineError: the process was forked.
    """
    if os.getpid() != process:
        raise EngineError(
            "this image encoder was made before the process was forked, and CUDA does not survive "
            "that; load the model in the new process, and start it by spawn"
        )


def wait_when_deleted(encoder: ImageEncoder, work: torch.cuda.Event | torch.cuda.Stream) -> None:
    """Keeps an encoder's memory until the GPU is done with it.

    Freed memory goes to the next who asks on the stream that it was allocated on, while the
    encoder's last call may still run on another.
    """
    weakref.finalize(encoder, _wait, work, os.getpid()).atexit = False


def _wait(work: torch.cuda.Event | torch.cuda.Stream, process: int) -> None:
    # (In a fork there is nothing to wait for, and CUDA is not asked; amid a recording nobody may.
    # A torch without CUDA has no recordings, and raises where it is asked.)
    if os.getpid() != process:
        return
    if not (torch.backends.cuda.is_built() and torch.cuda.is_current_stream_capturing()):
        work.synchronize()


def check_pictures(
    x: Tensor, img_size: int, device: torch.device, max_batch_size: int | None
) -> None:
    """Refuses what an encoder was not built for, before it computes nonsense.

    Args:
        device: as ``samtrt.kernels.device.resolved`` gives it.
        max_batch_size: None where any will do.

    Raises:
        InputError: a shape other than [1…max_batch_size, 3, img_size, img_size], a dtype other
            than float32, or another device.
    """
    largest = "" if max_batch_size is None else max_batch_size
    expected = f"[1…{largest}, 3, {img_size}, {img_size}] float32 on {device}"
    batch_fits = (
        isinstance(x, Tensor)
        and x.ndim == 4
        and x.shape[0] >= 1
        and (max_batch_size is None or x.shape[0] <= max_batch_size)
    )
    if (
        not batch_fits
        or x.shape[1:] != (3, img_size, img_size)
        or x.dtype != torch.float32
        or x.device.type != device.type
        or (device.type == "cuda" and x.device.index != device.index)
    ):
        found = type(x).__name__
        if isinstance(x, Tensor):
            found = f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
        raise InputError(
            f"the image encoder takes pictures of {expected}, and got {found}; "
            "samtrt.pictures.transforms.preprocess makes them, --max-batch-size sets the largest "
            "batch"
        )

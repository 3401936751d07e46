"""What every image encoder is, whatever runs it: one call, one check of its input."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from samtrt.errors import InputError


@runtime_checkable
class ImageEncoder(Protocol):
    """SAM's image encoder, ready to run.

    Attributes:
        img_size: side S of the square input, in pixels.
        device: where the input must be and the output will be.
        computed_by: what makes the embedding's numbers, beside the picture and the parameters:
            backend, precision and the version of what runs, as
            ``"cuda fp16 hopper sm_90 3f2a91c07e55"``. An embedding is the same, to the last bits of
            its sums, wherever this and the parameters are.
    """

    img_size: int
    device: torch.device
    computed_by: str

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        ...


def check_pictures(x: Tensor, img_size: int, device: torch.device, max_batch_size: int) -> None:
    """Refuses what an encoder was not built for, before it computes nonsense.

    Raises:
        InputError: a shape other than [1…max_batch_size, 3, img_size, img_size], a dtype other
            than float32, or another device.
    """
    expected = f"[1…{max_batch_size}, 3, {img_size}, {img_size}] float32 on {device}"
    batch_fits = x.ndim == 4 and 1 <= x.shape[0] <= max_batch_size
    if (
        not batch_fits
        or x.shape[1:] != (3, img_size, img_size)
        or x.dtype != torch.float32
        or x.device.type != device.type
    ):
        found = f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
        raise InputError(
            f"the image encoder takes pictures of {expected}, and got {found}; "
            "samtrt.pictures.transforms.preprocess makes them, --max-batch-size sets the largest "
            "batch"
        )

"""One embedded picture: what every decoder takes, and where it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import InputError
from samtrt.pictures.transforms import Mark, Size, Statistics, preprocess, unmeasured
from samtrt.torch_state import as_written


@dataclass(frozen=True, eq=False)
class EmbeddedPicture:
    """A picture's embedding, where the picture lies in the model's frame, and what computed it.

    Attributes:
        features: [1, C, h, w] float32, h = w tokens a side, on any device.
        original_size: (H, W) of the picture, in pixels.
        input_size: (height, width) that it takes up in the model's square frame, in pixels.
        img_size: side S of that frame, in pixels.
        computed_by: ``ImageEncoder.computed_by`` of the encoder; empty where it is not known.
        parameters_sha256: of the parameter set; empty where it is not known.

    Raises:
        InputError: features of another shape or dtype, or sizes that no picture has.
    """

    features: Tensor
    original_size: Size
    input_size: Size
    img_size: int
    computed_by: str = ""
    parameters_sha256: str = ""

    def __post_init__(self) -> None:
        shape = self.features.shape
        if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] or not shape[2]:
            raise InputError(f"the embedding has shape {list(shape)}, expected [1, C, h, h]")
        if self.features.dtype != torch.float32:
            raise InputError(f"the embedding is {self.features.dtype}, expected torch.float32")
        inside = all(0 < side <= self.img_size for side in self.input_size)
        if len(self.input_size) != 2 or not inside:
            raise InputError(
                f"input_size is {tuple(self.input_size)}, expected (height, width) in "
                f"1…{self.img_size} pixels of the model's frame"
            )
        if len(self.original_size) != 2 or min(self.original_size) < 1:
            raise InputError(
                f"original_size is {tuple(self.original_size)}, expected the picture's "
                "(height, width) in pixels"
            )

    @property
    def mask_side(self) -> int:
        """Side 4h of the decoder's logits and of a mask prompt."""
        return 4 * self.features.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features.nbytes

    def to(self, device: torch.device | str) -> "EmbeddedPicture":
        """The same with its features on another device."""
        return replace(self, features=self.features.to(device))


def embed_pictures(
    encoder: ImageEncoder,
    images: Sequence[np.ndarray],
    mark: Mark = unmeasured,
    statistics: Statistics | None = None,
) -> list[EmbeddedPicture]:
    """Resizes, normalises, pads and encodes pictures of any sizes as one batch.

    On a GPU it returns before that is done.

    Args:
        images: [H, W, 3] uint8 RGB each, at least one, in host memory; read before the call
            returns.
        mark: called with ``"upload"``, ``"preprocess"`` and ``"encode"`` once each is queued.
        statistics: mean and deviation of the channels; None for Meta's.

    Raises:
        InputError: anything but uint8 pictures, or more than the encoder takes at once.
    """
    for image in images:
        check_picture(image)
    with as_written():
        made = [
            preprocess(image, encoder.img_size, encoder.device, mark, statistics)
            for image in images
        ]
        frames = made[0][0] if len(made) == 1 else torch.cat([frame for frame, _ in made])
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    pictures = embed_frames(encoder, frames, [input_size for _, input_size in made], sizes)
    mark("encode")
    return pictures


def embed_frames(
    encoder: ImageEncoder,
    frames: Tensor,
    input_sizes: Sequence[Size],
    original_sizes: Sequence[Size],
) -> list[EmbeddedPicture]:
    """Encodes frames [B, 3, S, S] that ``transforms`` has made of pictures of those sizes."""
    features, computed_by = encoder(frames), encoder.computed_by
    return [
        EmbeddedPicture(embedding, original_size, input_size, encoder.img_size, computed_by)
        for embedding, input_size, original_size in zip(
            features.split(1), input_sizes, original_sizes, strict=True
        )
    ]


def check_picture(image: np.ndarray) -> None:
    """Refuses what is not a picture, before it fails somewhere inside.

    Raises:
        InputError: anything but a uint8 array of shape [H, W, 3] with at least one pixel.
    """
    if not isinstance(image, np.ndarray):
        found = f"a {type(image).__name__}"
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"a {image.dtype} array of shape {list(image.shape)}"
    else:
        return
    raise InputError(f"the image is {found}, expected a uint8 array of shape [H, W, 3]")

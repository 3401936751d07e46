"""How far apart two image encoders are: errors of the embedding, and IoU of the decoded masks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samtrt.decoders.prompts import Prompts
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError
from samtrt.modeling.prompt_encoder import (
    LABEL_BOX_BOTTOM_RIGHT,
    LABEL_BOX_TOP_LEFT,
    LABEL_FOREGROUND,
    LABEL_PADDING,
)
from samtrt.pictures.reading import load_image
from samtrt.pictures.transforms import Size, preprocess

# P prompts on a picture → logits [P, 4, 4h, 4w]
Decode = Callable[[EmbeddedPicture, Prompts], Tensor]

PictureSource = str | Path | npt.NDArray[np.uint8]

_PROMPTS_AT_ONCE = 8  # full-size masks of all prompts would take gigabytes


@dataclass(frozen=True)
class ErrorStatistics:
    """Errors of an output against a reference, element by element, in float64.

    Attributes:
        absolute_max, absolute_mean, absolute_median: of |output − reference|.
        relative_max, relative_mean, relative_median: of |output − reference| / |reference|, where
            the reference is not zero.
        relative_l2: ‖output − reference‖ / ‖reference‖.
    """

    absolute_max: float
    absolute_mean: float
    absolute_median: float
    relative_max: float
    relative_mean: float
    relative_median: float
    relative_l2: float


def error_statistics(output: Tensor, reference: Tensor) -> ErrorStatistics:
    """Statistics over two tensors of one shape; NaN in either makes them NaN."""
    if output.shape != reference.shape:
        raise ValueError(f"shapes {tuple(output.shape)} and {tuple(reference.shape)} differ")
    output, reference = output.double().cpu(), reference.double().cpu()
    absolute = (output - reference).abs()
    relative = (absolute / reference.abs())[reference != 0]
    return ErrorStatistics(
        absolute.max().item(),
        absolute.mean().item(),
        absolute.median().item(),
        relative.max().item(),
        relative.mean().item(),
        relative.median().item(),
        relative_l2(output, reference),
    )


def relative_l2(output: Tensor, reference: Tensor) -> float:
    """‖output − reference‖ / ‖reference‖ in float64."""
    output, reference = output.double().cpu(), reference.double().cpu()
    return ((output - reference).norm() / reference.norm()).item()


def worst(errors: Iterable[float]) -> float:
    """The largest; NaN where one is NaN, which Python's ``max`` would lose."""
    return torch.tensor(list(errors), dtype=torch.float64).max().item()


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of bool [..., H, W] → float64 [...]; 1 where both are empty."""
    intersection = (masks & others).sum((-2, -1)).double()
    union = (masks | others).sum((-2, -1)).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


@dataclass(frozen=True)
class Picture:
    """A picture in the model's frame.

    Attributes:
        name: of its file.
        pixels: [1, 3, S, S] float32, normalised and padded.
        input_size: (height, width) that it takes up in the frame.
        original_size: (height, width) in pixels.
    """

    name: str
    pixels: Tensor
    input_size: Size
    original_size: Size

    @property
    def img_size(self) -> int:
        """Side S of the frame."""
        return self.pixels.shape[-1]

    def embedded(self, features: Tensor) -> EmbeddedPicture:
        """The picture with an embedding [1, 256, h, w] that some encoder made of its pixels."""
        return EmbeddedPicture(features, self.original_size, self.input_size, self.img_size)


def load_pictures(paths: Sequence[PictureSource], img_size: int) -> list[Picture]:
    """Reads pictures from files or takes arrays (``load_picture``), at least one.

    Raises:
        InputError: none was given, or one is missing or not a picture.
    """
    if not paths:
        raise InputError("there is no picture to compare on; give one with --image")
    return [load_picture(path, img_size) for path in paths]


def load_picture(source: PictureSource, img_size: int) -> Picture:
    """Reads a picture from a file, or takes an array [H, W, 3] uint8 RGB.

    Raises:
        InputError: it is missing or not a picture.
    """
    if isinstance(source, np.ndarray):
        name, image = "a drawn picture", source
    else:
        name, image = Path(source).name, load_image(source)
    pixels, input_size = preprocess(image, img_size)
    return Picture(name, pixels, input_size, (image.shape[0], image.shape[1]))


def prompts_of(picture: Picture, points_a_side: int = 3) -> Prompts:
    """A grid of single foreground points and five boxes: the four quadrants and the middle."""
    height, width = picture.input_size
    steps = (np.arange(points_a_side) + 0.5) / points_a_side
    points = [((x * width, y * height), (0.0, 0.0)) for y in steps for x in steps]
    corners = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5), (0.25, 0.25)]
    boxes = [((x * width, y * height), ((x + 0.5) * width, (y + 0.5) * height)) for x, y in corners]
    labels = [(LABEL_FOREGROUND, LABEL_PADDING)] * len(points)
    labels += [(LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT)] * len(boxes)
    return Prompts(
        torch.tensor(points + boxes, dtype=torch.float32, device="cpu"),
        torch.tensor(labels, dtype=torch.float32, device="cpu"),
    )


def decode_prompts(decode: Decode, embedding: Tensor, picture: Picture) -> Tensor:
    """Logits [P, 4, 4h, 4w] of all of ``prompts_of(picture)`` on its embedding [1, 256, h, w]."""
    embedded = picture.embedded(embedding)
    parts = prompts_of(picture).split(_PROMPTS_AT_ONCE)
    return torch.cat([decode(embedded, part) for part in parts])


def mask_ious(logits: Tensor, reference: Tensor, picture: Picture) -> Tensor:
    """IoU of masks at the picture's own size: two [P, 4, h, w] of logits → [P, 4]."""
    ious = []
    for pair in zip(logits.split(_PROMPTS_AT_ONCE), reference.split(_PROMPTS_AT_ONCE), strict=True):
        masks, others = (cut_out(some, picture) for some in pair)
        ious.append(mask_iou(masks, others))
    return torch.cat(ious)

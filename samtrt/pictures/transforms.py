"""Pictures and prompts into the model's square frame, and masks back out of it.

The only place that resizes, normalises, pads, maps coordinates or upscales masks. The model's
frame is a square of ``img_size`` pixels (1024 for Meta's checkpoints) that holds the resized
picture in its top left corner. Order matters: resize, normalise, *then* pad with zeros; masks:
upscale the logits, crop, upscale again, *then* threshold. Sources: ``utils/transforms.py`` and
``modeling/sam.py`` of segment_anything.

Sizes are (height, width) everywhere; coordinates are (x, y) in pixels.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from samtrt.checkpoints.config import PIXEL_MEAN, PIXEL_STD

Size = tuple[int, int]
Statistics = tuple[Tensor, Tensor]  # mean and deviation of the channels, [3, 1, 1] each
Mark = Callable[[str], None]  # called with a stage's name once its work has been queued

IMG_SIZE = 1024
MASK_THRESHOLD = 0.0  # a pixel belongs to the mask where its logit is greater than this
_UPLOAD_BYTES = 1 << 20


def unmeasured(stage: str) -> None:
    """The mark of a call that nobody times."""


class Placed(Protocol):
    """What has a place in the model's frame, in (height, width) in pixels."""

    @property
    def original_size(self) -> Size:
        """Of the picture."""

    @property
    def input_size(self) -> Size:
        """That it takes up in the frame."""

    @property
    def img_size(self) -> int:
        """Side of the frame."""


class ResizeLongestSide:
    """Maps pictures, points and boxes so that the picture's long side has ``target_length`` pixels.

    Same name, methods and results as Meta's class, with two differences. A side never becomes
    shorter than one pixel (Meta's rounds it to zero and fails on a 20,000×5 picture), and
    ``apply_image_torch`` agrees with ``apply_image`` to one grey level (Meta's reads batch and
    channels as height and width).
    """

    def __init__(self, target_length: int = IMG_SIZE) -> None:
        self.target_length = target_length

    def apply_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resizes with Pillow's antialiased bilinear filter: [H, W, 3] uint8 → [h, w, 3] uint8."""
        height, width = self.get_preprocess_shape(
            image.shape[0], image.shape[1], self.target_length
        )
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        return np.array(resized)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Resizes on the tensor's device: [B, 3, H, W] → [B, 3, h, w], same dtype.

        A uint8 picture is rounded as Pillow rounds; a floating-point one is not.
        """
        height, width = self.get_preprocess_shape(
            image.shape[-2], image.shape[-1], self.target_length
        )
        if image.dtype != torch.uint8:
            return _resize(image.float(), (height, width)).to(image.dtype)
        # As Pillow: along the rows, rounded to whole grey levels, then along the columns.
        by_rows = _to_grey_levels(_resize(image.float(), (image.shape[-2], width)))
        return _to_grey_levels(_resize(by_rows, (height, width))).to(torch.uint8)

    def apply_coords(
        self, coords: npt.NDArray[np.generic], original_size: tuple[int, ...]
    ) -> npt.NDArray[np.float64]:
        """Points [..., 2] of a picture of ``original_size`` → points in the model's frame."""
        scale_x, scale_y = self._scale(original_size)
        return coords.astype(np.float64) * (scale_x, scale_y)

    def apply_boxes(
        self, boxes: npt.NDArray[np.generic], original_size: tuple[int, ...]
    ) -> npt.NDArray[np.float64]:
        """Boxes [B, 4] (x0, y0, x1, y1) of a picture → boxes in the model's frame."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """``apply_coords`` on a tensor of any dtype; returns float32 on the same device."""
        scale_x, scale_y = self._scale(original_size)
        x, y = coords.float().unbind(-1)
        return torch.stack((x * scale_x, y * scale_y), dim=-1)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """``apply_boxes`` on a tensor of any dtype; returns float32 on the same device."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def _scale(self, original_size: tuple[int, ...]) -> tuple[float, float]:
        height, width = original_size
        new_height, new_width = self.get_preprocess_shape(height, width, self.target_length)
        return new_width / width, new_height / height

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> Size:
        """The (height, width) that a picture of (oldh, oldw) is resized to."""
        scale = long_side_length / max(oldh, oldw)
        return max(1, int(oldh * scale + 0.5)), max(1, int(oldw * scale + 0.5))


def _resize(image: Tensor, size: Size) -> Tensor:
    """[B, 3, H, W] → [B, 3, *size] with the antialiased bilinear filter."""
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)


def _to_grey_levels(image: Tensor) -> Tensor:
    """Rounds to 0…255, halves upwards."""
    return (image + 0.5).floor_().clamp_(0, 255)


def normalize_and_pad(
    image: Tensor, img_size: int = IMG_SIZE, statistics: Statistics | None = None
) -> Tensor:
    """Subtracts the pixel mean, divides by the deviation, then pads with zeros right and below.

    Args:
        image: [B, 3, h, w], RGB in 0…255, any dtype, neither side longer than ``img_size``.
        statistics: the mean and the deviation, [3, 1, 1] each; None for Meta's.

    Returns:
        [B, 3, img_size, img_size] float32 on the same device.
    """
    mean, std = statistics or pixel_statistics(image.device)
    height, width = image.shape[-2:]
    padded = torch.zeros(
        (*image.shape[:-2], img_size, img_size), dtype=torch.float32, device=image.device
    )
    padded[..., :height, :width] = (image - mean.float()) / std.float()
    return padded


def preprocess(
    image: npt.NDArray[np.uint8],
    img_size: int = IMG_SIZE,
    device: torch.device | str = "cpu",
    mark: Mark = unmeasured,
    statistics: Statistics | None = None,
) -> tuple[Tensor, Size]:
    """A picture as the image encoder wants it: resized, normalised and padded.

    On the CPU Pillow resizes, exactly as Meta's code does. On any other device the uint8 picture
    is copied there first and resized there; the two agree to one grey level.

    Args:
        image: [H, W, 3] uint8, RGB.
        mark: called with ``"upload"`` and ``"preprocess"``.
        statistics: see ``normalize_and_pad``; on ``device``.

    Returns:
        The input [1, 3, img_size, img_size] float32 on ``device``, and the (height, width) that
        the picture takes up in it.
    """
    device = torch.device(device)
    transform = ResizeLongestSide(img_size)
    if device.type == "cpu":
        mark("upload")
        resized = torch.from_numpy(transform.apply_image(image)).permute(2, 0, 1)[None]
    else:
        on_device = _upload(torch.from_numpy(np.ascontiguousarray(image)), device)
        mark("upload")
        resized = transform.apply_image_torch(on_device.permute(2, 0, 1)[None])
    height, width = resized.shape[-2:]
    frame = normalize_and_pad(resized, img_size, statistics)
    mark("preprocess")
    return frame, (height, width)


def _upload(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, on its way: in parts, each copied to page-locked memory while the one
    before it crosses the bus (in this thread, as masks/transfer.py says)."""
    found = torch.empty(x.shape, dtype=x.dtype, device=device)
    locked = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=device.type == "cuda")
    flat, source, target = (each.view(-1).view(torch.uint8) for each in (locked, x, found))
    staged, original = flat.numpy(), source.numpy()
    for first in range(0, len(flat), _UPLOAD_BYTES):
        part = slice(first, first + _UPLOAD_BYTES)
        np.copyto(staged[part], original[part])
        target[part].copy_(flat[part], non_blocking=True)
    return found


def postprocess_masks(
    masks: Tensor, input_size: Size, original_size: Size, img_size: int = IMG_SIZE
) -> Tensor:
    """Upscales mask logits to the picture; threshold the result at ``MASK_THRESHOLD``.

    Args:
        masks: [B, M, h, w] logits of the mask decoder (256×256 for ``img_size`` 1024).
        input_size: (height, width) of the picture within the model's frame.
        original_size: (height, width) of the picture itself.

    Returns:
        [B, M, H, W] logits at ``original_size``, same dtype and device.
    """
    masks = F.interpolate(masks, (img_size, img_size), mode="bilinear", align_corners=False)
    masks = masks[..., : input_size[0], : input_size[1]]
    return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)


@lru_cache
def pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3, 1, 1], kept on the device so that no call waits for a copy."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        mean = torch.tensor(PIXEL_MEAN, dtype=torch.float32, device=device).view(3, 1, 1)
        std = torch.tensor(PIXEL_STD, dtype=torch.float32, device=device).view(3, 1, 1)
    return mean, std

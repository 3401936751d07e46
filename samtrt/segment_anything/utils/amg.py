"""What automatic masks are made with (Meta's ``utils/amg.py``), by the functions of ``masks/``.

Names, arguments, shapes and dtypes are Meta's. One value differs: the stability of a mask that is
empty at both thresholds is 0 and not 0/0. Pictures and masks are NumPy arrays where Meta's are, and
tensors elsewhere, on any device.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from samtrt.decoders.upscaling import stability_scores
from samtrt.masks.geometry import (
    crop_boxes,
    is_box_near_crop_edge,
    layer_point_grids,
    mask_boxes,
    point_grid,
    remove_small_regions,
    uncrop_boxes_xyxy,
    uncrop_masks,
    uncrop_points,
)
from samtrt.masks.mask_data import MaskData
from samtrt.masks.runs import MaskRuns, area_from_rle, coco_encode_rle, rle_to_mask

__all__ = [
    "MaskData",
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "calculate_stability_score",
    "coco_encode_rle",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
    "uncrop_boxes_xyxy",
    "uncrop_masks",
    "uncrop_points",
]

_Box = TypeVar("_Box", Tensor, np.ndarray, list)


def box_xyxy_to_xywh(box_xyxy: _Box) -> _Box:
    """One box (x0, y0, x1, y1) as a new (x, y, width, height) of the same type."""
    box = deepcopy(box_xyxy)
    box[2] -= box[0]
    box[3] -= box[1]
    return box


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """The arguments cut into pieces of at most ``batch_size`` entries, side by side.

    Raises:
        AssertionError: no arguments, or some of different lengths.
    """
    lengths = {len(arg) for arg in args}
    assert len(lengths) == 1, f"batches need sequences of one length, got {sorted(lengths)}"
    for start in range(0, lengths.pop(), batch_size):
        yield [arg[start : start + batch_size] for arg in args]


def mask_to_rle_pytorch(tensor: Tensor) -> list[dict[str, Any]]:
    """Masks [B, H, W] as COCO's uncompressed RLE: ``{"size": [H, W], "counts": [int, …]}``."""
    return MaskRuns.from_masks(tensor.bool()).to_coco()


def calculate_stability_score(
    masks: Tensor, mask_threshold: float, threshold_offset: float
) -> Tensor:
    """IoU [...] of logits [..., H, W] cut at ``mask_threshold`` ± ``threshold_offset``."""
    return stability_scores(masks, mask_threshold, threshold_offset)


def build_point_grid(n_per_side: int) -> np.ndarray:
    """Evenly spaced points of the unit square, float64 [n_per_side², 2], (x, y), by rows."""
    return point_grid(n_per_side)


def build_all_layer_point_grids(
    n_per_side: int, n_layers: int, scale_per_layer: int
) -> list[np.ndarray]:
    """The grid of each crop layer; layer n has n_per_side / scale_per_layer**n points a side."""
    return layer_point_grids(n_per_side, n_layers, scale_per_layer)


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """XYXY crops of a picture of ``im_size`` (H, W) and the layer of each; layer n has 2ⁿ × 2ⁿ."""
    height, width = im_size
    return crop_boxes((height, width), n_layers, overlap_ratio)


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """XYXY boxes int64 [..., 4] around bool masks [..., H, W]; an empty mask has [0, 0, 0, 0].

    Without any pixel, that is with an axis of length 0, the boxes are float32 zeros.
    """
    if not masks.numel():
        return torch.zeros(*masks.shape[:-2], 4, device=masks.device)
    return mask_boxes(masks.reshape(-1, *masks.shape[-2:])).view(*masks.shape[:-2], 4)

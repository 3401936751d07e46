"""The geometry of automatic masks: point grids, crops, boxes, NMS, small regions.

What each function computes follows segment_anything/utils/amg.py and torchvision's ``nms``.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from samtrt.errors import InputError

MAX_POINTS_PER_SIDE = 1_000  # a million points, three masks each

# A box this close to a crop's border, in pixels, is taken to be cut by it (Meta's atol).
CROP_EDGE_TOLERANCE = 20.0

# Boxes compared at once by `nms`: bounds its memory to N × this many pairs.
_NMS_BLOCK = 1024

# Regions touch over corners too, as in Meta's call of OpenCV (connectivity 8).
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


def point_grid(points_per_side: int) -> np.ndarray:
    """Evenly spaced points of the unit square: float64 [points_per_side², 2], (x, y), by rows."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_point_grids(
    points_per_side: int, crop_n_layers: int, downscale_factor: int
) -> list[np.ndarray]:
    """The grid of each crop layer; layer n has points_per_side / downscale_factor**n a side."""
    return [
        point_grid(int(points_per_side / downscale_factor**layer))
        for layer in range(crop_n_layers + 1)
    ]


def checked_point_grids(
    points_per_side: int | None,
    layers: int,
    factor: int,
    point_grids: list[np.ndarray] | None,
) -> list[np.ndarray]:
    """A generator's grids [N, 2] in the unit square, one for each of ``layers`` + 1: those that are
    given, or ``layer_point_grids``.

    Raises:
        InputError: both are given or neither, too few of them, or something else than grids.
    """
    if point_grids is None and points_per_side is not None:
        check_at_least("points_per_side", points_per_side, 1)
        if points_per_side > MAX_POINTS_PER_SIDE:
            raise InputError(
                f"points_per_side is {points_per_side}, expected at most {MAX_POINTS_PER_SIDE}"
            )
        if not is_number(factor) or not factor > 0:
            raise InputError(
                f"crop_n_points_downscale_factor is {factor!r}, expected a number above 0"
            )
        if points_per_side / factor**layers < 1:
            raise InputError(
                f"layer {layers} would have {points_per_side} / {factor}**{layers} points a side, "
                "which is none; take a smaller crop_n_points_downscale_factor, fewer layers or "
                "more points_per_side"
            )
        point_grids = layer_point_grids(points_per_side, layers, factor)
    elif point_grids is None or points_per_side is not None:
        raise InputError("give either points_per_side or point_grids, and not both")
    if len(point_grids) <= layers:
        raise InputError(
            f"{layers} crop layers need {layers + 1} point_grids, got {len(point_grids)}"
        )
    return [_checked_grid(grid) for grid in point_grids]


def _checked_grid(grid: Any) -> np.ndarray:
    points = np.asarray(grid)
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "iuf":
        raise InputError(
            f"a point grid is {points.dtype} of shape {list(points.shape)}, expected numbers [N, 2]"
        )
    if not np.isfinite(points).all():
        raise InputError("a point grid holds a number that is not finite")
    return points


def check_at_least(name: str, value: Any, least: int) -> None:
    """
    Raises:
        InputError: the argument is no whole number, or is less.
    """
    if not is_number(value) or value != int(value) or value < least:
        raise InputError(f"{name} is {value!r}, expected a whole number, at least {least}")


def is_number(value: Any) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def crop_boxes(
    size: tuple[int, int], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The crops of a picture of ``size`` (H, W): the whole, then 2ⁿ × 2ⁿ of them in layer n.

    Returns:
        XYXY boxes in pixels, and the layer of each.
    """
    height, width = size
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        a_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / a_side))
        crop_width = math.ceil((overlap * (a_side - 1) + width) / a_side)
        crop_height = math.ceil((overlap * (a_side - 1) + height) / a_side)
        for column in range(a_side):
            for row in range(a_side):
                x0, y0 = column * (crop_width - overlap), row * (crop_height - overlap)
                boxes.append([x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height)])
                layers.append(layer)
    return boxes, layers


def take_masks(masks: Tensor, indices: Tensor) -> Tensor:
    """``masks[indices]`` of [B, H, W] masks, by rows or by columns in memory as they were."""
    if masks.is_contiguous():
        return masks[indices]
    return masks.transpose(1, 2)[indices].transpose(1, 2)


def mask_boxes(masks: Tensor) -> Tensor:
    """The box around each bool mask [B, H, W]: int64 [B, 4], XYXY of the outermost pixels.

    An empty mask has the box [0, 0, 0, 0].
    """
    _, height, width = masks.shape
    if masks.is_cuda:
        rows, columns = masks.any(dim=2), masks.any(dim=1)
    else:  # NumPy looks through a bool array in a tenth of torch's time on the CPU
        rows, columns = (torch.from_numpy(masks.numpy().any(axis=axis)) for axis in (2, 1))
    edges = []
    for occupied, length in ((columns, width), (rows, height)):
        first = occupied.int().argmax(dim=1)
        last = length - 1 - occupied.flip(1).int().argmax(dim=1)
        edges.append((first, last))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1) * rows.any(dim=1, keepdim=True)


def is_box_near_crop_edge(
    boxes: Tensor, crop_box: list[int], orig_box: list[int], atol: float = CROP_EDGE_TOLERANCE
) -> Tensor:
    """Which boxes (XYXY in the crop's frame) end at the crop's border but not at the picture's.

    Args:
        boxes: [B, 4].
        crop_box: the crop in the picture's frame, XYXY.
        orig_box: the picture, XYXY.
        atol: distance in pixels up to which a box ends there.

    Returns:
        bool [B].
    """
    boxes = uncrop_boxes_xyxy(boxes, crop_box).float()
    near_crop = (boxes - boxes.new_tensor(crop_box)).abs() <= atol
    near_picture = (boxes - boxes.new_tensor(orig_box)).abs() <= atol
    return (near_crop & ~near_picture).any(dim=1)


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: list[int]) -> Tensor:
    """XYXY boxes [..., 4] of a crop's frame → of the picture's."""
    return boxes + torch.tensor(crop_box[:2], device=boxes.device).repeat(2)


def uncrop_points(points: Tensor, crop_box: list[int]) -> Tensor:
    """Points [..., 2] of a crop's frame → of the picture's."""
    return points + torch.tensor(crop_box[:2], device=points.device)


def uncrop_masks(masks: Tensor, crop_box: list[int], orig_h: int, orig_w: int) -> Tensor:
    """Masks [..., h, w] of a crop → [..., H, W] of the picture, background around it."""
    x0, y0, x1, y1 = crop_box
    pad = (x0, orig_w - x1, y0, orig_h - y1)
    return F.pad(masks, pad, value=0) if any(pad) else masks


def box_areas(boxes: Tensor) -> Tensor:
    """Areas of XYXY boxes [N, 4]: [N]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, exactly torchvision's, in a few passes over matrices.

    A box is dropped when a better one that is kept overlaps it by more than ``iou_threshold``.
    Within a block of boxes that definition is iterated from "all kept" until nothing changes:
    it determines the boxes in the order of their scores, so the fixed point is unique and is
    what the greedy loop returns. Runs on the boxes' device, in memory proportional to N.

    Args:
        boxes: float [N, 4], XYXY.
        scores: [N], on the same device.

    Returns:
        int64 indices of the boxes kept, best score first (earlier first among equals).
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    areas = box_areas(boxes)
    kept = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    for start in range(0, len(boxes), _NMS_BLOCK):
        block = slice(start, start + _NMS_BLOCK)
        alive = ~_overlaps(boxes, areas, kept, block, iou_threshold).any(dim=0)
        own = torch.arange(start, min(start + _NMS_BLOCK, len(boxes)), device=boxes.device)
        suppresses = _overlaps(boxes, areas, own, block, iou_threshold).triu(diagonal=1)
        keep = alive
        while True:
            # A float product: the CPU and the GPU have no fast bool one.
            suppressed = (keep.float() @ suppresses.float()) > 0
            following = alive & ~suppressed
            if torch.equal(following, keep):
                break
            keep = following
        kept = torch.cat([kept, own[keep]])
    return order[kept]


def _overlaps(boxes: Tensor, areas: Tensor, rows: Tensor, block: slice, limit: float) -> Tensor:
    """Which of the boxes ``rows`` overlap which of ``block`` by more than ``limit``: bool."""
    low = torch.maximum(boxes[rows, None, :2], boxes[None, block, :2])
    high = torch.minimum(boxes[rows, None, 2:], boxes[None, block, 2:])
    inter = (high - low).clamp(min=0).prod(dim=2)
    return inter / (areas[rows, None] + areas[None, block] - inter) > limit


def remove_small_regions(
    mask: np.ndarray, area_thresh: float, mode: str
) -> tuple[np.ndarray, bool]:
    """Fills the holes, or removes the islands, of fewer than ``area_thresh`` pixels.

    If every island is that small, the largest stays.

    Args:
        mask: bool [H, W].
        mode: ``"holes"`` or ``"islands"``.

    Returns:
        the mask, and whether it was changed.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode must be 'holes' or 'islands', is {mode!r}")
    holes = mode == "holes"
    regions, count = ndimage.label(~mask if holes else mask, structure=_EIGHT_CONNECTED)
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    small = areas < area_thresh
    small[0] = False  # label 0 is what is not a region
    if not small.any():
        return mask, False
    if holes:
        return mask | small[regions], True
    if small[1:].all():
        return regions == 1 + areas[1:].argmax(), True
    return mask & ~small[regions], True

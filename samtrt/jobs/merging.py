"""Masks of a picture's windows made into masks of the picture.

An object that lies across the border of two windows has a mask in each. In the strip that both
windows see, the two are alike where they are of one object: those that are each other's most alike,
by an IoU in the strip of at least ``SAME``, become one mask, and so do the masks of further windows
that go on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samtrt.masks.runs import coco_columns, coco_decode_crop, placed_rle, require_pycocotools

SAME = 0.7
_PIXELS_AT_ONCE = 1 << 16

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Window:
    """A part of a picture, in its pixels: ``width`` × ``height`` from (``x``, ``y``) on."""

    x: int
    y: int
    width: int
    height: int

    @property
    def box(self) -> list[int]:
        """[x, y, width, height]."""
        return [self.x, self.y, self.width, self.height]

    def shared_with(self, other: "Window") -> "Window | None":
        """What both see; None where they see nothing together."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = min(self.x + self.width, other.x + other.width) - x
        height = min(self.y + self.height, other.y + other.height) - y
        return Window(x, y, width, height) if width > 0 and height > 0 else None


def moved(record: dict[str, Any], window: Window, size: tuple[int, int]) -> dict[str, Any]:
    """A window's annotation in the frame of the picture (H, W)."""
    x, y = window.x, window.y
    columns = coco_columns(record["segmentation"])
    found = {**record, "segmentation": placed_rle(columns, (x, y), size)}
    for name in ("bbox", "crop_box", "prompt_box"):
        if name in record:
            left, top, width, height = record[name]
            found[name] = [x + left, y + top, width, height]
    if "point_coords" in record:
        found["point_coords"] = [[x + one[0], y + one[1]] for one in record["point_coords"]]
    return found


def merged(
    windows: Sequence[Window],
    records_of: Callable[[int], Records],
    size: tuple[int, int],
    same: float = SAME,
) -> Records:
    """The annotations of all windows as those of the picture, each object once.

    Of an object's masks the largest gives what is told beside the mask: its prompt, its scores.

    Args:
        windows: in order.
        records_of: the annotations of a window, by its number; asked for again where two windows
            meet, so that those of a few windows are held at a time.
        size: (H, W) of the picture.
        same: IoU in what two windows both see.

    Raises:
        SamtrtError: pycocotools is not installed.
    """
    groups = _Groups()
    counts = []
    for number, window in enumerate(windows):
        records = records_of(number)
        counts.append(len(records))
        for before in _neighbours(windows, number):
            strip = windows[before].shared_with(window)
            if strip is not None:
                here = _within(records, window, strip)
                there = _within(records_of(before), windows[before], strip)
                for one, other in _alike(there, here, same):
                    groups.join((before, one), (number, other))
    members: dict[tuple[int, int], Records] = {}
    for number, window in enumerate(windows):
        for index, record in enumerate(records_of(number)):
            root = groups.root((number, index))
            members.setdefault(root, []).append(moved(record, window, size))
    return [_one(records) for records in members.values()]


def _neighbours(windows: Sequence[Window], number: int) -> list[int]:
    """Those before a window that see a part of it."""
    here = windows[number]
    return [index for index in range(number) if windows[index].shared_with(here) is not None]


def _within(records: Records, window: Window, strip: Window) -> dict[int, npt.NDArray[np.bool_]]:
    """The pixels in a strip, flat, of the masks that have any there; by their number."""
    left, top = strip.x - window.x, strip.y - window.y
    found = {}
    for number, record in enumerate(records):
        x, y, width, height = record["bbox"]
        if (
            x >= left + strip.width
            or y >= top + strip.height
            or x + width <= left
            or y + height <= top
        ):
            continue
        crop, (x, y) = coco_decode_crop(record["segmentation"])
        mask = np.zeros((strip.height, strip.width), bool)
        x0, y0 = max(x, left), max(y, top)
        x1 = min(x + crop.shape[1], left + strip.width)
        y1 = min(y + crop.shape[0], top + strip.height)
        if x0 < x1 and y0 < y1:
            part = crop[y0 - y : y1 - y, x0 - x : x1 - x]
            mask[y0 - top : y1 - top, x0 - left : x1 - left] = part
        if mask.any():
            found[number] = mask.ravel()
    return found


def _alike(
    one: dict[int, npt.NDArray[np.bool_]], other: dict[int, npt.NDArray[np.bool_]], same: float
) -> list[tuple[int, int]]:
    """Pairs that are each other's most alike, and alike enough; of equals the first."""
    if not one or not other:
        return []
    first, second = np.stack(list(one.values())), np.stack(list(other.values()))
    shared = np.zeros((len(first), len(second)))
    for start in range(0, first.shape[1], _PIXELS_AT_ONCE):
        part = slice(start, start + _PIXELS_AT_ONCE)
        shared += first[:, part].astype(np.float32) @ second[:, part].astype(np.float32).T
    areas = first.sum(1)[:, None] + second.sum(1)[None]
    ious = shared / (areas - shared)
    columns, rows = ious.argmax(1), ious.argmax(0)
    numbers, others = list(one), list(other)
    return [
        (numbers[row], others[column])
        for row, column in enumerate(columns)
        if rows[column] == row and ious[row, column] >= same
    ]


class _Groups:
    """Which masks are of one object: sets that are joined, each named by its first."""

    def __init__(self) -> None:
        self._above: dict[tuple[int, int], tuple[int, int]] = {}

    def root(self, one: tuple[int, int]) -> tuple[int, int]:
        """The first of a mask's set."""
        while (above := self._above.get(one)) is not None:
            one = above
        return one

    def join(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        """Makes the sets of two masks one."""
        first, second = sorted((self.root(one), self.root(other)))
        if first != second:
            self._above[second] = first


def _one(records: Records) -> dict[str, Any]:
    """The masks of one object as one."""
    if len(records) == 1:
        return records[0]
    mask_utils = require_pycocotools()
    rles = [
        {**record["segmentation"], "counts": record["segmentation"]["counts"].encode("ascii")}
        for record in records
    ]
    union = mask_utils.merge(rles)
    main = max(records, key=lambda record: record["area"])
    return {
        **main,
        "segmentation": {"size": list(union["size"]), "counts": union["counts"].decode("ascii")},
        "area": int(mask_utils.area(union)),
    }

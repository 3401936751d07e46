"""Masks of windows become masks of the picture: objects across borders are whole again."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from samtrt.jobs.merging import Window, merged
from samtrt.masks.runs import coco_decode_rle, mask_columns, placed_rle

SIZE = (100, 130)
# Two rows of three, 50 × 60 with 10 pixels in common.
WINDOWS = [Window(x, y, 50, 60) for y in (0, 40) for x in (0, 40, 80)]


def objects() -> dict[str, np.ndarray]:
    found = {name: np.zeros(SIZE, bool) for name in ("river", "inside", "corner", "part", "edge")}
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    found["river"][abs(y - 30 - 10 * np.sin(x / 15)) < 6] = True  # through three windows
    found["inside"][70:80, 5:15] = True
    found["corner"][35:65, 30:60] = True  # in four
    found["part"][45:55, 42:48] = True  # of it, where all four see it
    found["edge"][80:100, 100:130] = True
    return found


def records_of(masks: list[np.ndarray], window: Window) -> list[dict[str, Any]]:
    """Of the masks as the window sees them."""
    found = []
    for number, mask in enumerate(masks):
        seen = mask[window.y : window.y + window.height, window.x : window.x + window.width]
        if seen.any():
            rle = placed_rle(mask_columns(seen), (0, 0), seen.shape)
            box = mask_utils.toBbox({**rle, "counts": rle["counts"].encode()}).tolist()
            found.append({
                "segmentation": rle, "area": int(seen.sum()), "bbox": box,
                "predicted_iou": 0.5 + number / 100 + seen.mean() / 1000,
                "point_coords": [[1.5, 2.5]], "crop_box": [0, 0, window.width, window.height],
            })  # fmt: skip
    return found


@pytest.mark.parametrize("seed", range(3))
def test_objects_are_whole_and_once(seed: int) -> None:
    masks = objects()
    order = list(masks)
    np.random.default_rng(seed).shuffle(order)
    expected = [masks[name] for name in order]
    kept = [records_of(expected, window) for window in WINDOWS]
    found = merged(WINDOWS, kept.__getitem__, SIZE)
    decoded = [coco_decode_rle(record["segmentation"]) for record in found]
    assert len(decoded) == len(expected)
    for mask in expected:
        (match,) = [one for one in decoded if (one == mask).all()]
        record = found[next(n for n, one in enumerate(decoded) if one is match)]
        assert record["area"] == mask.sum()
        # What is told besides is of the largest part, in the picture's pixels.
        areas = [mask[w.y : w.y + w.height, w.x : w.x + w.width].sum() for w in WINDOWS]
        largest = WINDOWS[int(np.argmax(areas))]
        assert record["crop_box"] == largest.box
        assert record["point_coords"] == [[largest.x + 1.5, largest.y + 2.5]]


def test_masks_that_differ_stay_apart() -> None:
    """A whole on one side and its part on the other are no pair, and a mask has one partner."""
    left, right = Window(0, 0, 60, 40), Window(40, 0, 60, 40)
    size = (40, 100)
    whole, part = np.zeros(size, bool), np.zeros(size, bool)
    whole[5:35, 30:60], part[5:20, 30:60] = True, True
    kept = [records_of([whole, part], left), records_of([part], right)]
    found = merged([left, right], kept.__getitem__, size)
    decoded = [coco_decode_rle(record["segmentation"]) for record in found]
    assert len(found) == 2
    np.testing.assert_array_equal(decoded[0], whole)
    np.testing.assert_array_equal(decoded[1], part)
    apart = merged([left, right], kept.__getitem__, size, same=1.01)
    assert len(apart) == 3


def test_no_masks() -> None:
    assert merged(WINDOWS, lambda number: [], SIZE) == []

"""Masks painted over their picture."""

import colorsys
import tracemalloc
from collections.abc import Sequence

import numpy as np

from samtrt.pictures.drawing import paint_in_order, paint_masks


def painted_at_once(image: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """The same picture by the formula, in floating point and all rows at once."""
    top = np.zeros(image.shape[:2], int)
    colors = np.zeros((len(masks) + 1, 3))
    for number, mask in enumerate(sorted(masks, key=lambda mask: -mask.sum()), start=1):
        top[mask] = number
        colors[number] = 255 * np.array(colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 1))
    covered = (top > 0)[..., None]
    pixels = np.where(covered, 0.5 * image + 0.5 * colors[top], image)
    edge = np.zeros(top.shape, bool)
    edge[:, 1:] |= top[:, 1:] != top[:, :-1]
    edge[1:] |= top[1:] != top[:-1]
    return np.where(edge[..., None], 0.35 * pixels, pixels).round().astype(np.uint8)


def test_rows_are_painted_as_a_whole_picture_is() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 7), (64, 5), (65, 30), (200, 90)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        masks = [rng.random((height, width)) < share for share in (0.1, 0.9, 0.4)]
        np.testing.assert_array_equal(paint_masks(image, masks), painted_at_once(image, masks))


def test_painting_takes_little_memory() -> None:
    """Of 12 megapixels: the picture that is returned, four bytes a pixel, and one mask."""
    image = np.zeros((3000, 4000, 3), np.uint8)

    def masks():  # type: ignore[no-untyped-def]
        for number in range(3):
            mask = np.zeros((3000, 4000), bool)
            mask[100 * number :, : 1000 * number + 500] = True
            yield mask

    tracemalloc.start()
    paint_in_order(image, masks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6 * (3 + 4 + 2) + 20e6


def test_painted_masks_part_and_small_ones_lie_on_top() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    large, small = np.zeros((2, 40, 60), bool)
    large[5:35, 5:50], small[10:20, 10:20] = True, True
    for masks in ([large, small], [small, large]):
        painted = paint_masks(image, masks)
        np.testing.assert_array_equal(painted[2, 2], image[2, 2])
        inside_small, inside_large = painted[15, 15].astype(int), painted[30, 40].astype(int)
        assert np.abs(inside_small - inside_large).max() > 50
        assert np.abs(inside_large - 100).max() > 50
        assert painted[15, 10].sum() < 0.5 * painted[15, 15].sum()  # the line between them
    np.testing.assert_array_equal(paint_masks(image, []), image)

"""Run lengths in a large picture: pycocotools is the oracle."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from samtrt.masks.runs import coco_counts, coco_decode_crop, mask_columns, placed_rle


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [rng.random((7, 9)) < share for share in (0, 0.03, 0.2, 0.5, 0.9, 1)]
    found += [rng.random((height, 1)) < 0.5 for height in (1, 2, 300)]
    wide = np.zeros((300, 500), bool)
    wide[40:260, 30:400] = True
    wide[100:120, 50:60] = False
    return [*found, wide, wide.T]


def encoded(mask: np.ndarray) -> dict[str, object]:
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.mark.parametrize("mask", masks())
def test_counts_are_those_that_coco_has_written(mask: np.ndarray) -> None:
    flat = mask.T.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    expected = np.diff(changes, prepend=0, append=flat.size)
    assert coco_counts(encoded(mask)["counts"]).tolist() == expected.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", masks())
def test_a_placed_mask_is_the_one_in_the_picture(mask: np.ndarray) -> None:
    height, width = mask.shape
    for corner in ((0, 0), (3, 5), (8, 0)):
        for size in ((height + corner[1], width + corner[0]), (height + 20, width + 30)):
            picture = np.zeros(size, bool)
            picture[corner[1] : corner[1] + height, corner[0] : corner[0] + width] = mask
            rle = placed_rle(mask_columns(mask), corner, size)
            assert rle == encoded(picture)
            crop, (x, y) = coco_decode_crop(rle)
            again = np.zeros(size, bool)
            again[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
            np.testing.assert_array_equal(again, picture)
            if crop.size:
                assert crop.any(0)[[0, -1]].all() and crop.any(1)[[0, -1]].all()
            else:
                assert not picture.any()


def test_a_picture_that_would_not_fit_into_memory() -> None:
    size = (60_000, 70_000)  # 4.2 gigapixels
    mask = np.ones((20, 30), bool)
    rle = placed_rle(mask_columns(mask), (69_970, 59_980), size)
    coco = {**rle, "counts": rle["counts"].encode()}
    assert mask_utils.area(coco) == 600
    assert mask_utils.toBbox(coco).tolist() == [69_970, 59_980, 30, 20]
    crop, corner = coco_decode_crop(rle)
    assert crop.shape == (20, 30) and crop.all() and corner == (69_970, 59_980)


def test_the_outline_of_a_mask_across_4_gigapixels_takes_no_pixels() -> None:
    pytest.importorskip("shapely")
    from samtrt.formats.polygons import outline_of

    x = np.arange(70_000)
    columns = (x, x // 100 * 80, x // 100 * 80 + 300)  # from one corner to the other
    rle = placed_rle(columns, (0, 0), (60_000, 70_000))
    (part,) = outline_of({"segmentation": rle})
    assert part.area == 300 * len(x) and part.bounds == (0, 0, 70_000, 699 * 80 + 300)
    assert len(part.exterior.coords) == 2 * 2 * 700 + 1


def test_outlines_of_many_corners() -> None:
    """shapely would call itself once for each, and end the process."""
    pytest.importorskip("shapely")
    from samtrt.formats.polygons import outline_of

    x = np.arange(8_000)
    rle = placed_rle((x, x, x + 5), (0, 0), (8_005, 8_000))
    (part,) = outline_of({"segmentation": rle}, 0.0)
    assert part.area == 5 * len(x) and len(part.exterior.coords) == 2 * 2 * len(x) + 1

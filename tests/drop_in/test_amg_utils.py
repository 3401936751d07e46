"""segment_anything.utils against Meta's, function by function, on random input."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from samtrt.errors import InputError
from samtrt.reports.peers import import_segment_anything
from samtrt.segment_anything.utils import amg
from samtrt.segment_anything.utils.transforms import ResizeLongestSide


@pytest.fixture(scope="module")
def meta() -> Any:
    import_segment_anything()
    from segment_anything.utils import amg

    return amg


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def same(found: Any, expected: Any) -> None:
    """Equal in type, dtype, shape and value."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            same(mine, theirs)
    else:
        assert found == expected


def random_masks(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=rng) > 0.7


@pytest.mark.parametrize("shape", [(5, 13, 17), (2, 3, 9, 8), (13, 17), (0, 4, 5), (2, 0, 5)])
def test_boxes_around_masks(meta: Any, rng: torch.Generator, shape: tuple[int, ...]) -> None:
    masks = random_masks(rng, *shape)
    if len(masks) > 1 and masks.ndim > 2:
        masks[0] = False
    same(amg.batched_mask_to_box(masks), meta.batched_mask_to_box(masks))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_runs(meta: Any, rng: torch.Generator, dtype: torch.dtype) -> None:
    masks = random_masks(rng, 6, 11, 7)
    masks[0], masks[1], masks[2, 0, 0] = False, True, True
    masks = masks.to(dtype)
    runs = amg.mask_to_rle_pytorch(masks)
    same(runs, meta.mask_to_rle_pytorch(masks))
    for rle in runs:
        same(amg.rle_to_mask(rle), meta.rle_to_mask(rle))
        same(amg.area_from_rle(rle), meta.area_from_rle(rle))
        same(amg.coco_encode_rle(deepcopy(rle)), meta.coco_encode_rle(deepcopy(rle)))


@pytest.mark.parametrize("shape", [(5, 13, 17), (2, 3, 9, 8)])
def test_stability(meta: Any, rng: torch.Generator, shape: tuple[int, ...]) -> None:
    logits = 3 * torch.randn(*shape, generator=rng)
    expected = meta.calculate_stability_score(logits, 0.2, 1.5)
    same(amg.calculate_stability_score(logits, 0.2, 1.5), expected)
    assert not expected.isnan().any()
    assert amg.calculate_stability_score(torch.full((1, 4, 4), -9.0), 0.0, 1.0).item() == 0


def test_grids_and_crops(meta: Any) -> None:
    same(amg.build_point_grid(7), meta.build_point_grid(7))
    arguments = {"n_per_side": 16, "n_layers": 2, "scale_per_layer": 3}
    same(
        amg.build_all_layer_point_grids(**arguments), meta.build_all_layer_point_grids(**arguments)
    )
    for size in ((480, 640), (31, 999), (7, 5)):
        asked = {"im_size": size, "n_layers": 3, "overlap_ratio": 512 / 1500}
        same(amg.generate_crop_boxes(**asked), meta.generate_crop_boxes(**asked))


@pytest.mark.parametrize("crop", [[30, 10, 130, 100], [0, 0, 400, 300], [270, 200, 400, 300]])
def test_back_from_a_crop(meta: Any, rng: torch.Generator, crop: list[int]) -> None:
    boxes = torch.randint(0, 100, (50, 4), generator=rng)
    for given in (boxes, boxes.float(), boxes.view(10, 5, 4)):
        same(amg.uncrop_boxes_xyxy(given, crop), meta.uncrop_boxes_xyxy(given, crop))
    points = torch.rand(40, 2, generator=rng, dtype=torch.float64) * 90
    for given in (points, points.view(8, 5, 2), points.int()):
        same(amg.uncrop_points(given, crop), meta.uncrop_points(given, crop))
    x0, y0, x1, y1 = crop
    masks = random_masks(rng, 3, y1 - y0, x1 - x0)
    for given in (masks, masks.float(), masks[:0]):
        same(amg.uncrop_masks(given, crop, 300, 400), meta.uncrop_masks(given, crop, 300, 400))
    for tolerance in ({}, {"atol": 3.0}):
        picture = [0, 0, 400, 300]
        expected = meta.is_box_near_crop_edge(boxes, crop, picture, **tolerance)
        same(amg.is_box_near_crop_edge(boxes, crop, picture, **tolerance), expected)


def test_one_box_with_its_size(meta: Any, rng: torch.Generator) -> None:
    box = torch.randint(0, 100, (4,), generator=rng)
    for given in (box, box.double(), box.numpy(), box.tolist()):
        before = deepcopy(given)
        same(amg.box_xyxy_to_xywh(given), meta.box_xyxy_to_xywh(given))
        same(given, before)


def test_batches(meta: Any) -> None:
    for count in (0, 1, 6, 7):
        columns = (list(range(count)), np.arange(count), torch.arange(count))
        found, expected = (list(package.batch_iterator(3, *columns)) for package in (amg, meta))
        same(found, expected)
    for wrong in ((), ([1], [1, 2])):
        for package in (amg, meta):
            with pytest.raises(AssertionError):
                list(package.batch_iterator(3, *wrong))


def columns(rng: torch.Generator) -> dict[str, Any]:
    return {
        "rles": [{"counts": [i, 2]} for i in range(6)],
        "boxes": torch.randint(0, 50, (6, 4), generator=rng),
        "scores": torch.rand(6, generator=rng).numpy(),
    }


@pytest.mark.parametrize(
    "keep",
    [torch.tensor([True, False, True, True, False, False]), torch.tensor([4, 0, 0]), []],
    ids=["bool", "indices", "none"],
)
def test_columns_are_filtered_and_joined(meta: Any, rng: torch.Generator, keep: Any) -> None:
    keep = torch.as_tensor(keep, dtype=None if len(keep) else torch.int64)
    given, more = columns(rng), columns(rng)
    found, expected = amg.MaskData(**deepcopy(given)), meta.MaskData(**deepcopy(given))
    for data in (found, expected):
        data.filter(keep)
        data.cat(type(data)(**deepcopy(more), points=[1.0]))
        del data["points"]
        data["new"] = torch.arange(3)
        data.to_numpy()
    assert list(dict(found.items())) == list(dict(expected.items()))
    for name, column in expected.items():
        same(found[name], column)


def test_a_new_column_is_a_copy() -> None:
    data, other = amg.MaskData(), amg.MaskData(rles=[{"counts": [1]}], boxes=torch.ones(1, 4))
    data.cat(other)
    data["rles"][0]["counts"].append(2)
    data["boxes"][0] = 0
    assert other["rles"] == [{"counts": [1]}] and other["boxes"].all()


def test_a_column_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match="'boxes' is a tuple, expected a list"):
        amg.MaskData(boxes=(1, 2))
    data = amg.MaskData()
    with pytest.raises(InputError, match="'rles' is a str"):
        data["rles"] = "no"


def test_resize_longest_side(rng: torch.Generator) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide as Metas

    generator = np.random.default_rng(3)
    for size in ((37, 90), (90, 37), (64, 64)):
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        found, expected = ResizeLongestSide(128), Metas(128)
        same(found.apply_image(image), expected.apply_image(image))
        points, boxes = generator.random((4, 5, 2)) * 90, generator.random((6, 4)) * 90
        for given in (points, points.astype(np.float32), points.astype(int)):
            same(found.apply_coords(given, size), expected.apply_coords(given, size))
        same(found.apply_boxes(boxes, size), expected.apply_boxes(boxes, size))
        for dtype in (torch.float64, torch.float32, torch.int64):
            given = torch.from_numpy(points).to(dtype)
            mine, theirs = (r.apply_coords_torch(given, size) for r in (found, expected))
            torch.testing.assert_close(mine, theirs)
            given = torch.from_numpy(boxes).to(dtype)
            mine, theirs = (r.apply_boxes_torch(given, size) for r in (found, expected))
            torch.testing.assert_close(mine, theirs)
        same(found.get_preprocess_shape(*size, 128), expected.get_preprocess_shape(*size, 128))

"""Subclasses of the generator whose steps are their own, as SAM-6D and others have them."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, tiny_config
from test_automatic import connected_components, loop_nms

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import InputError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.mask_data import MaskData
from samtrt.reports.peers import import_segment_anything
from samtrt.sam import Sam, sam_from_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config()
PICTURE = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
OPTIONS: dict[str, Any] = {
    "points_per_side": 3,
    "points_per_batch": 4,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 0.995,
    "crop_nms_thresh": 0.995,
    "crop_n_layers": 1,
    "min_mask_region_area": 20,
    "output_mode": "uncompressed_rle",
}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return sam_from_parameters(random_parameters(CONFIG, 3), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def package() -> Any:
    return import_segment_anything()


@pytest.fixture(autouse=True)
def nms_of_meta(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.automatic_mask_generator, "batched_nms", loop_nms)
    cv2 = SimpleNamespace(connectedComponentsWithStats=connected_components)
    monkeypatch.setitem(sys.modules, "cv2", cv2)


def with_steps(base: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """A generator that changes something in each step, whoever's it is; and the steps' calls."""
    calls: list[tuple[Any, ...]] = []

    class Own(base):  # type: ignore[misc]
        def _generate_masks(self, image: np.ndarray) -> Any:
            calls.append(("generate", image.shape))
            data = super()._generate_masks(image[:, ::-1])
            data["iou_preds"] = data["iou_preds"] + 1
            return data

        def _process_crop(self, image: Any, crop_box: Any, layer: Any, size: Any) -> Any:
            calls.append(("crop", list(crop_box), layer, tuple(size)))
            data = super()._process_crop(image, crop_box, layer, size)
            data.filter(torch.arange(len(data["rles"])) % 2 == 0)
            return data

        def _process_batch(self, points: Any, im_size: Any, crop_box: Any, orig_size: Any) -> Any:
            calls.append(("batch", len(points), tuple(im_size), list(crop_box), tuple(orig_size)))
            data = super()._process_batch(points, im_size, crop_box, orig_size)
            data["stability_score"] = data["stability_score"] * 0.5
            return data

        @staticmethod
        def postprocess_small_regions(mask_data: Any, min_area: int, nms_thresh: float) -> Any:
            calls.append(("small", min_area, nms_thresh))
            return base.postprocess_small_regions(mask_data, 2 * min_area, nms_thresh)

    return Own, calls


def assert_alike(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) > 3
    for a, b in zip(found, expected, strict=True):
        assert a["segmentation"] == b["segmentation"]
        assert a.keys() == b.keys()
        for name in ("area", "bbox", "crop_box", "point_coords"):
            assert np.allclose(a[name], b[name]), name
        for name in ("predicted_iou", "stability_score"):
            assert a[name] == pytest.approx(b[name], abs=2e-5)


def test_all_steps_are_called_with_metas_arguments_and_their_results_used(
    sam: Sam, package: Any
) -> None:
    ours, our_calls = with_steps(SamAutomaticMaskGenerator)
    theirs, their_calls = with_steps(package.SamAutomaticMaskGenerator)
    found = ours(sam, **OPTIONS).generate(PICTURE)
    expected = theirs(meta_sam(CONFIG, 3), **OPTIONS).generate(PICTURE)
    assert our_calls == their_calls and len(our_calls) > 10
    assert_alike(found, expected)


@pytest.mark.parametrize("mode", ["binary_mask", "coco_rle", "uncompressed_rle"])
def test_step_by_step_it_finds_what_it_finds_otherwise(sam: Sam, mode: str) -> None:
    class Unchanged(SamAutomaticMaskGenerator):
        def _process_batch(self, *arguments: Any) -> MaskData:
            return super()._process_batch(*arguments)

    options = {**OPTIONS, "output_mode": mode}
    found = Unchanged(sam, **options).generate(PICTURE)
    expected = SamAutomaticMaskGenerator(sam, **options).generate(PICTURE)
    assert len(found) == len(expected) > 3
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_equal(a, b)
        assert {name: type(value) for name, value in a.items()} == {
            name: type(value) for name, value in b.items()
        }


def test_a_step_set_on_one_generator_counts(sam: Sam) -> None:
    generator = SamAutomaticMaskGenerator(sam, **{**OPTIONS, "crop_n_layers": 0})
    assert generator.overridden_step is None
    expected = generator.generate(PICTURE)
    step = generator._process_crop

    def fewer(*arguments: Any) -> MaskData:
        data = step(*arguments)
        data.filter(torch.arange(min(1, len(data["rles"]))))
        return data

    generator._process_crop = fewer  # type: ignore[method-assign]
    assert generator.overridden_step == "_process_crop"
    assert len(generator.generate(PICTURE)) == 1 < len(expected)


def test_what_steps_cannot_do_is_said(sam: Sam) -> None:
    ours, _ = with_steps(SamAutomaticMaskGenerator)
    generator = ours(sam, **{**OPTIONS, "crop_n_layers": 0})
    with pytest.raises(InputError, match="Own has a _generate_masks of its own, which takes"):
        generator.generate_embedded(sam.embed(PICTURE))


def test_a_picture_without_masks_has_none(sam: Sam) -> None:
    """(Meta's generator fails.)"""
    ours, _ = with_steps(SamAutomaticMaskGenerator)
    assert ours(sam, **{**OPTIONS, "pred_iou_thresh": 1e9}).generate(PICTURE) == []

"""Cutting on the CPU looks at a part of the picture only, and finds what the whole would give."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from samtrt.decoders.upscaling import cut_out_with_stability, stability_scores, upscaled_logits
from samtrt.masks.geometry import mask_boxes
from samtrt.masks.runs import MaskRuns


@dataclass(frozen=True)
class Placed:
    """A picture in a frame of 64."""

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    img_size: int = 64


PLACES = [
    Placed((64, 64), (64, 64)),
    Placed((300, 200), (64, 43)),
    Placed((31, 97), (20, 64)),
    Placed((1, 500), (1, 64)),
    Placed((7, 5), (64, 46)),
]


def spots(seed: int, count: int = 40) -> torch.Tensor:
    """Logits [count, 16, 16] that are low but for a few places, some of them at the border."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-6, 2, (count, 16, 16))
    for mask in logits[1:]:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, 16, 2)
            mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] += rng.normal(7, 3)
    logits[0] = -50  # nothing passes
    logits[1] = 3  # everything does
    logits[2, 15, 15] = 40
    return torch.from_numpy(logits).float()


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("threshold, offset", [(0.0, 1.0), (0.0, 0.0), (-2.5, 3.0), (1.5, -2.0)])
def test_masks_and_scores_are_those_of_the_whole_picture(
    place: Placed, threshold: float, offset: float
) -> None:
    low_res = spots(1)
    masks, scores = cut_out_with_stability(low_res, place, threshold, offset)
    whole = upscaled_logits(low_res[None], place)[0]
    assert torch.equal(masks, whole > threshold)
    assert torch.equal(scores, stability_scores(whole, threshold, offset))
    assert not masks[0].any() and masks.shape == (len(low_res), *place.original_size)


def test_half_precision_logits() -> None:
    low_res = spots(2).half()
    masks, scores = cut_out_with_stability(low_res, PLACES[1], 0.0, 1.0)
    whole = upscaled_logits(low_res.float()[None], PLACES[1])[0]
    assert torch.equal(masks, whole > 0)
    assert torch.equal(scores, stability_scores(whole, 0.0, 1.0))


def test_runs_and_boxes_are_pycocotools() -> None:
    rng = np.random.default_rng(3)
    masks = [rng.random((9, 13)) < share for share in (0.0, 0.02, 0.1, 0.5, 0.9, 1.0)]
    for columns in ((0, 1), (12, 13), (0, 13), (4, 6)):
        for rows in ((0, 9), (0, 1), (8, 9)):
            mask = np.zeros((9, 13), bool)
            mask[slice(*rows), slice(*columns)] = True
            masks.append(mask)
    batch = torch.from_numpy(np.stack(masks))
    for given in (batch, batch.transpose(1, 2).contiguous().transpose(1, 2)):
        runs = MaskRuns.from_masks(given)
        for rle, box, mask in zip(runs.to_coco(), mask_boxes(given).tolist(), masks, strict=True):
            expected = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert mask_utils.frPyObjects(rle, 9, 13) == expected
            x, y, width, height = mask_utils.toBbox(expected)
            whole = [x, y, x + width - 1, y + height - 1] if mask.any() else [0, 0, 0, 0]
            assert box == whole


def test_no_masks() -> None:
    assert len(MaskRuns.from_masks(torch.zeros(0, 4, 5, dtype=torch.bool))) == 0
    assert mask_boxes(torch.zeros(0, 4, 5, dtype=torch.bool)).shape == (0, 4)
    masks, scores = cut_out_with_stability(torch.zeros(0, 16, 16), PLACES[0], 0.0, 1.0)
    assert masks.shape == (0, 64, 64) and len(scores) == 0

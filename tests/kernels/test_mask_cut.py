"""The mask-cutting kernel against torch's interpolations, in Triton's interpreter or on a GPU."""

import pytest
import torch
from triton_kernels import DEVICE

from samtrt.kernels.triton.mask_cut import cut_and_count, cut_masks
from samtrt.pictures.transforms import postprocess_masks

THRESHOLD, OFFSET = 0.1, 0.4


@pytest.mark.parametrize(
    ("input_size", "original_size"),
    [
        ((128, 96), (80, 60)),  # smaller than the frame
        ((85, 128), (100, 151)),  # larger, and no multiple of a tile
        ((128, 128), (128, 128)),
        ((1, 128), (1, 70)),  # one row
        ((128, 7), (33, 2)),
    ],
)
def test_masks_and_areas_are_those_of_the_written_logits(
    input_size: tuple[int, int], original_size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    low_res = torch.randn(3, 32, 32, generator=generator).to(DEVICE)
    low_res[1] = -5  # an empty mask
    masks, areas = cut_and_count(low_res, input_size, original_size, 128, THRESHOLD, OFFSET)
    logits = postprocess_masks(low_res.double()[:, None], input_size, original_size, 128)[:, 0]

    assert masks.shape == logits.shape and masks.transpose(1, 2).is_contiguous()
    # Values that differ in the last bit may fall on either side of a cut.
    clear = (logits - THRESHOLD).abs() > 1e-5
    assert torch.equal(masks[clear], (logits > THRESHOLD)[clear])
    for column, sign in ((0, 1), (1, -1)):
        expected = (logits > THRESHOLD + sign * OFFSET).sum(dim=(1, 2))
        unclear = ((logits - THRESHOLD - sign * OFFSET).abs() <= 1e-5).sum(dim=(1, 2))
        assert ((areas[:, column] - expected).abs() <= unclear).all()
    assert areas[1].tolist() == [0, 0]
    by_rows = cut_masks(low_res, input_size, original_size, 128, THRESHOLD)
    assert by_rows.is_contiguous() and torch.equal(by_rows, masks)


def test_no_masks() -> None:
    none = torch.zeros(0, 32, 32, device=DEVICE)
    masks, areas = cut_and_count(none, (128, 128), (10, 20), 128, THRESHOLD, OFFSET)
    assert masks.shape == (0, 10, 20) and areas.shape == (0, 2)
    assert cut_masks(none, (128, 128), (10, 20), 128, THRESHOLD).shape == (0, 10, 20)

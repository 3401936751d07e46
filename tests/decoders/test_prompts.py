"""Prompts: what is mapped where, what is refused, and that it says why."""

from typing import Any

import numpy as np
import pytest
import torch

from samtrt.decoders.prompts import Prompt, Prompts
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError

# A picture of 150 × 200 pixels in a frame of 256: 192 × 256 of it, scale 1.28.
PICTURE = EmbeddedPicture(torch.zeros(1, 256, 16, 16), (150, 200), (192, 256), 256)
COORDS, LABELS = np.array([[60.0, 70], [10, 20]]), np.array([1, 0])
MASK = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)


def test_points_are_mapped_and_padded() -> None:
    prompts = Prompts.from_arrays(PICTURE, COORDS, LABELS)
    expected = torch.tensor([[[76.8, 89.6], [12.8, 25.6], [0, 0]]])
    torch.testing.assert_close(prompts.coords, expected)
    assert prompts.labels.tolist() == [[1, 0, -1]] and prompts.mask_input is None
    assert prompts.coords.dtype == prompts.labels.dtype == torch.float32


def test_a_box_stands_after_the_points_without_padding() -> None:
    prompts = Prompts.from_arrays(PICTURE, COORDS, LABELS, [20, 30, 160, 120], MASK)
    assert prompts.labels.tolist() == [[1, 0, 2, 3]]
    torch.testing.assert_close(prompts.coords[0, 2:], torch.tensor([[25.6, 38.4], [204.8, 153.6]]))
    assert prompts.mask_input is not None and prompts.mask_input.shape == (1, 1, 64, 64)


def test_whatever_holds_numbers_is_taken() -> None:
    expected = Prompts.from_arrays(
        PICTURE, COORDS[::-1].copy(), LABELS[::-1].copy(), mask_input=MASK
    )
    for coords, labels, mask in (
        (COORDS[::-1], LABELS[::-1], MASK[:, ::-1][:, ::-1]),  # negative strides
        (torch.tensor(COORDS).flip(0), torch.tensor(LABELS).flip(0), torch.tensor(MASK)),
        (COORDS[::-1].tolist(), [0, 1], MASK.tolist()),
        (np.asfortranarray(COORDS[::-1]), np.array([False, True]), np.asfortranarray(MASK)),
        (COORDS[::-1].astype(np.int16), LABELS[::-1].astype(np.uint8), MASK.astype(np.float64)),
    ):
        found = Prompts.from_arrays(PICTURE, coords, labels, mask_input=mask)
        assert torch.equal(found.coords, expected.coords)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.mask_input, expected.mask_input)
    box = torch.tensor([20, 30, 160, 120])
    for given in (box, box.numpy(), box[None], box.tolist(), box.numpy()[::-1][::-1]):
        assert Prompts.from_arrays(PICTURE, box=given).coords[0, 0, 0] == pytest.approx(25.6)


def test_no_points_keep_their_padding_point() -> None:
    prompts = Prompts.from_arrays(PICTURE, np.zeros((0, 2)), np.zeros(0))
    assert prompts.labels.tolist() == [[-1]] and prompts.coords.shape == (1, 1, 2)
    batch = Prompts.from_tensors(PICTURE, torch.zeros(3, 0, 2), torch.zeros(3, 0))
    assert batch.labels.tolist() == [[-1]] * 3
    nothing = Prompts.from_arrays(PICTURE)
    assert nothing.coords.shape == (1, 0, 2) and len(nothing) == 1


def test_no_prompts_at_all() -> None:
    assert len(Prompts.from_tensors(PICTURE, boxes=torch.zeros(0, 4))) == 0
    assert len(Prompts.from_tensors(PICTURE, torch.zeros(0, 2, 2), torch.zeros(0, 2))) == 0
    assert list(Prompts.from_tensors(PICTURE, boxes=torch.zeros(0, 4)).split(8)) == []


def test_one_mask_is_for_all_prompts() -> None:
    boxes = torch.rand(3, 4)
    mask = torch.rand(1, 1, 64, 64)
    prompts = Prompts.from_tensors(PICTURE, boxes=boxes, mask_input=mask)
    assert prompts.mask_input is not None and prompts.mask_input.shape == (3, 1, 64, 64)
    assert len(Prompts.from_tensors(PICTURE, mask_input=mask.expand(5, 1, 64, 64))) == 5


def test_parts_are_in_order() -> None:
    points = torch.arange(20).reshape(10, 1, 2)
    whole = Prompts.from_tensors(
        PICTURE, points, torch.ones(10, 1), mask_input=torch.rand(10, 1, 64, 64)
    )
    parts = list(whole.split(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    for name in ("coords", "labels", "mask_input"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name))


P12, B12 = torch.rand(12, 1, 2), torch.rand(12, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"point_coords": P12, "point_labels": torch.ones(9, 1)}, "do not fit"),
        ({"point_coords": P12[:3], "point_labels": torch.ones(1, 1)}, "do not fit"),
        ({"point_coords": P12[:1], "point_labels": torch.ones(3, 1)}, "do not fit"),
        ({"point_coords": P12, "point_labels": torch.ones(12, 2)}, "do not fit"),
        (
            {"boxes": B12, "mask_input": torch.zeros(9, 1, 64, 64)},
            "batch sizes differ .12 in boxes, 9 in mask_input",
        ),
        (
            {"boxes": B12[:1], "mask_input": torch.zeros(2, 1, 64, 64)},
            "batch sizes differ",
        ),
        (
            {"point_coords": P12, "point_labels": torch.ones(12, 1), "boxes": B12[:1]},
            "batch sizes differ",
        ),
        ({"point_coords": P12[:, 0], "point_labels": torch.ones(12)}, r"expected \[B, N, 2\]"),
        ({"boxes": B12[0]}, r"boxes has shape \[4\], expected \[B, 4\]"),
        ({"boxes": B12.reshape(12, 2, 2)}, r"expected \[B, 4\]"),
        ({"mask_input": torch.zeros(1, 64, 64)}, r"expected \[B, 1, 64, 64\]"),
        ({"mask_input": torch.zeros(1, 1, 256, 256)}, r"expected \[B, 1, 64, 64\]"),
        ({"point_coords": P12}, "without point_labels"),
        ({"point_labels": torch.ones(12, 1)}, "without point_coords"),
        ({"boxes": B12.numpy()}, "boxes is a ndarray, expected a torch tensor"),
        ({"boxes": B12.cfloat()}, "expected numbers"),
        ({"boxes": B12 * torch.nan}, "boxes holds a number that is not finite"),
        (
            {"point_coords": P12 / 0, "point_labels": torch.ones(12, 1)},
            "point_coords holds a number that is not finite",
        ),
        ({"mask_input": torch.full((1, 1, 64, 64), torch.inf)}, "mask_input holds a number"),
        ({"point_coords": P12, "point_labels": 2 * torch.ones(12, 1)}, "the label 2; expected 1"),
        ({"point_coords": P12, "point_labels": 0.5 * torch.ones(12, 1)}, "the label 0.5"),
        ({"point_coords": P12, "point_labels": torch.nan * P12[..., 0]}, "the label nan"),
    ],
)
def test_what_is_no_batch_of_prompts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Prompts.from_tensors(PICTURE, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"point_coords": COORDS}, "without point_labels"),
        ({"point_labels": LABELS}, "without point_coords"),
        ({"point_coords": COORDS, "point_labels": LABELS[:1]}, r"\[2, 2\] and point_labels \[1\]"),
        ({"point_coords": COORDS[0], "point_labels": LABELS[:1]}, "do not fit"),
        ({"point_coords": COORDS[None], "point_labels": LABELS[None]}, "do not fit"),
        ({"point_coords": COORDS, "point_labels": np.array([2, 3])}, "the label 2; expected 1"),
        ({"point_coords": COORDS * np.nan, "point_labels": LABELS}, "not finite"),
        ({"point_coords": np.array([["a", "b"]]), "point_labels": [1]}, "expected numbers"),
        ({"point_coords": np.array([[{}, 1]]), "point_labels": [1]}, "holds object"),
        ({"box": np.zeros((3, 4))}, r"box has shape \[3, 4\], expected \[4\].*predict_torch"),
        ({"box": np.zeros((2, 2))}, r"box has shape \[2, 2\], expected \[4\]"),
        ({"box": np.array([0, 0, np.inf, 1])}, "not finite"),
        ({"mask_input": np.zeros((64, 64))}, r"expected \[1, 64, 64\]"),
        ({"mask_input": np.zeros((1, 1, 64, 64))}, r"expected \[1, 64, 64\]"),
    ],
)
def test_what_is_no_prompt(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Prompts.from_arrays(PICTURE, **given)
    assert "\n" not in str(caught.value)


def test_shapes_are_checked_however_prompts_are_made() -> None:
    with pytest.raises(InputError, match="do not fit"):
        Prompts(torch.zeros(2, 3, 2), torch.zeros(2, 2))
    with pytest.raises(InputError, match="one for each prompt"):
        Prompts(torch.zeros(2, 3, 2), torch.zeros(2, 3), torch.zeros(1, 1, 64, 64))


def test_one_object_of_a_console() -> None:
    prompt = Prompt.from_numbers([60, 70, 10, 20], [1, 0], [20, 30, 160, 120])
    found = prompt.to_model_frame(PICTURE)
    expected = Prompts.from_arrays(PICTURE, COORDS, LABELS, [20, 30, 160, 120])
    assert torch.equal(found.coords, expected.coords)
    assert torch.equal(found.labels, expected.labels)
    with pytest.raises(InputError, match="outside the picture"):
        Prompt.from_numbers([200, 70]).to_model_frame(PICTURE)


def test_prompts_of_as_many_points_go_together() -> None:
    single = [
        Prompts.from_arrays(PICTURE, COORDS[:1], LABELS[:1]),
        Prompts.from_arrays(PICTURE, box=[20, 30, 160, 120]),
        Prompts.from_arrays(PICTURE, COORDS, LABELS),
        Prompts.from_arrays(PICTURE, COORDS[1:], LABELS[1:], mask_input=MASK),
        Prompts.from_arrays(PICTURE, COORDS[1:], LABELS[1:]),
    ]
    batches = list(Prompts.batches(single))
    assert [numbers for numbers, _ in batches] == [[0, 1, 4], [2], [3]]
    for numbers, batch in batches:
        for row, number in enumerate(numbers):
            assert torch.equal(batch.coords[row], single[number].coords[0])
            assert torch.equal(batch.labels[row], single[number].labels[0])
    assert [batch.mask_input is None for _, batch in batches] == [True, True, False]
    assert list(Prompts.batches([])) == []

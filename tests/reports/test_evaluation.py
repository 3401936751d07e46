"""The evaluation protocol, with decoders whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from samtrt.decoders.prompts import Prompts
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.modeling.mask_decoder import select_masks
from samtrt.reports.evaluation import correlation, evaluate_picture, summarise

HEIGHT, WIDTH, SIZE = 96, 128, 128  # the picture fills the model's frame across
MASKS = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
MASKS[0, 8:48, 24:64] = True
MASKS[1, 48:88, 80:120] = True
IMAGE = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)


def encode(picture: Tensor) -> Tensor:
    assert picture.shape == (1, 3, SIZE, SIZE)
    return torch.zeros(1, 256, SIZE // 16, SIZE // 16)


class KnowingDecoder:
    """Finds the mask that a prompt means; token 0 and token ``right`` show it, the others do not.

    ``damage`` cells are missing from the right side of what token 0 shows before the third point.
    """

    img_size, num_masks, parameters_sha256, note = SIZE, 4, "", ""

    def __init__(self, right: int, favourite: int, damage: int = 0) -> None:
        self.right, self.favourite, self.damage = right, favourite, damage
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(
        self,
        picture: EmbeddedPicture,
        prompts: Prompts,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        point_coords, point_labels = prompts.coords, prompts.labels
        mask_input = prompts.mask_input
        self.calls.append((point_coords, point_labels, mask_input))
        side = SIZE // 4
        truth = torch.zeros(len(MASKS), side, side)
        truth[:, : HEIGHT // 4] = torch.from_numpy(MASKS[:, ::4, ::4]).float()
        logits = torch.full((len(point_coords), 4, side, side), -8.0)
        for row, (points, labels) in enumerate(zip(point_coords, point_labels, strict=True)):
            if labels[0] == 2:
                x, y = points[:2].mean(0).tolist()
            else:
                x, y = points[0].tolist()
            which = int(np.argmax(MASKS[:, int(y), int(x)]))
            assert MASKS[which, int(y), int(x)]
            shown = truth[which] * 16 - 8
            logits[row, self.right] = shown
            logits[row, 0] = shown
            if self.damage and len(points) < 4:  # the third click stands before the padding point
                columns = truth[which].any(0).nonzero()[:, 0]
                logits[row, :, :, columns[-self.damage :]] = -8.0
        scores = torch.full((len(point_coords), 4), 0.2)
        scores[:, self.favourite] = 0.9
        return select_masks(logits, scores, multimask_output)


def records(decoder: KnowingDecoder) -> dict[str, float]:
    found = evaluate_picture(encode, decoder, IMAGE, MASKS, ["a", "b"])
    summary = summarise(found)
    assert summary["masks"] == 2
    assert summary["by_group"]["a"]["masks"] == 1
    return summary["mean_iou"]


def test_a_decoder_that_knows_gets_nearly_one() -> None:
    """Not quite one: bilinear upscaling rounds corners."""
    assert min(records(KnowingDecoder(right=2, favourite=2)).values()) > 0.98


def test_one_click_is_judged_by_the_mask_that_the_model_prefers() -> None:
    mean_iou = records(KnowingDecoder(right=2, favourite=3))
    assert mean_iou["1 click"] == 0
    assert mean_iou["1 click, oracle"] > 0.98
    assert mean_iou["box"] > 0.98


def test_prompts_are_where_the_protocol_says() -> None:
    decoder = KnowingDecoder(right=1, favourite=1, damage=2)
    mean_iou = records(decoder)
    assert mean_iou["1 click"] < 0.85 < mean_iou["3 clicks"]
    first, second, third, box = decoder.calls
    # The middle of each square, in a 4 × 4 cell of the frame, then the padding point.
    middles = torch.tensor([[44.0, 28.0], [100.0, 68.0]])
    assert (first[0][:, 0] - middles).abs().max() <= 4
    assert first[1].tolist() == [[1, -1], [1, -1]]
    assert first[2] is None
    # The second click corrects what is missing at the right edge, with the last mask's logits.
    assert second[0].shape[1] == 3
    assert second[1][:, 1].tolist() == [1, 1]
    assert (second[0][:, 1, 0] > torch.tensor([54.0, 110.0])).all()
    assert second[2] is not None
    assert third[0].shape[1] == 4
    assert box[0].tolist() == [[[24, 8], [64, 48]], [[80, 48], [120, 88]]]
    assert box[1].tolist() == [[2, 3], [2, 3]]


def test_agreement_with_another_engine() -> None:
    decoder = KnowingDecoder(right=1, favourite=1)
    (record, _) = evaluate_picture(encode, decoder, IMAGE, MASKS, ["a", "b"], against=encode)
    assert record.against == {"1 click": 1.0, "box": 1.0}


def test_correlation() -> None:
    assert correlation([(0.1, 0.2), (0.2, 0.4), (0.3, 0.6)]) == pytest.approx(1)
    assert correlation([(0.1, 0.6), (0.2, 0.4), (0.3, 0.2)]) == pytest.approx(-1)
    assert math.isnan(correlation([(0.5, 0.2), (0.5, 0.4)]))

"""The shipped checkpoint still is what its model card says, on 14 scenes of the unseen seed."""

from pathlib import Path
from typing import Any

import pytest

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders.load import encoder_from_parameters
from samtrt.reports.evaluation import evaluate_picture, summarise
from samtrt.scenes.drawing import examples

MODELS = Path(__file__).resolve().parents[2] / "examples/sam/sam_models"
CHECKPOINT = MODELS / "sam_demo.pth"
UNSEEN_SEED = 2024
# 41 masks: the standard error of the mean IoU is 0.024 for a click, 0.007 for the others. The card
# promises 0.85, 0.92 and 0.92; what so few masks must reach is one standard error more.
SCENES, MASKS_A_SCENE = 14, 3


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    parameters = read_checkpoint(CHECKPOINT)
    encoder = encoder_from_parameters(parameters, backend="cpu", precision="fp32")
    decoder = TorchDecoder.from_parameters(parameters)
    records = []
    for index, (image, masks, groups) in enumerate(examples(UNSEEN_SEED, SCENES)):
        # Which masks are asked for changes from scene to scene: slots are sorted by size.
        chosen = [(index + 4 * turn) % len(masks) for turn in range(MASKS_A_SCENE)]
        chosen = sorted(set(chosen))
        records += evaluate_picture(
            encoder, decoder, image, masks[chosen], [groups[i] for i in chosen]
        )
    return summarise(records)


def test_the_checkpoint_is_small() -> None:
    assert CHECKPOINT.stat().st_size <= 16e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least"), [("1 click", 0.874), ("box", 0.927), ("3 clicks", 0.927)]
)
def test_masks_are_good(summary: dict[str, Any], kind: str, least: float) -> None:
    assert summary["masks"] >= 40
    assert summary["mean_iou"][kind] >= least


@pytest.mark.slow
def test_predicted_ious_tell_good_masks_from_bad(summary: dict[str, Any]) -> None:
    assert summary["predicted_iou_correlation"] >= 0.7

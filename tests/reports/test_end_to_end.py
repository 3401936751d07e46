"""The times that a user waits: what is measured, and that wrong masks are not timed."""

import json

import numpy as np
import pytest
import skimage.data
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import SamtrtError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import IMAGE_STAGES, PROMPT_STAGES, SamPredictor
from samtrt.reports import end_to_end
from samtrt.sam import Sam, sam_from_parameters


@pytest.fixture(scope="module")
def sam() -> Sam:
    return sam_from_parameters(random_parameters(tiny_config()), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:100, :140])


def test_a_clock_names_every_stage(sam: Sam, picture: np.ndarray) -> None:
    predictor = SamPredictor(sam)
    predictor.mark = clock = end_to_end.StageClock(predictor.device)
    predictor.set_image(picture)
    predictor.predict(np.array([[40.0, 50.0]]), np.array([1]))
    times = clock.milliseconds()
    assert tuple(times) == (*IMAGE_STAGES, *PROMPT_STAGES)
    assert all(value >= 0 for value in times.values()) and times["encode"] > 0


def test_measure_end_to_end(sam: Sam, picture: np.ndarray) -> None:
    result = end_to_end.measure_end_to_end(sam, picture, repeats=6, warm_up=1)
    assert result.image_size == (100, 140) and result.mask_iou >= 0.99
    assert 0 < result.first_p50 <= result.first_p90
    assert 0 < result.further_p50 <= result.further_p90
    assert tuple(result.stages) == (*IMAGE_STAGES, *PROMPT_STAGES)
    assert json.loads(json.dumps(result.to_json()))["stages"] == result.stages


def test_wrong_masks_are_not_timed(
    sam: Sam, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = SamPredictor.predict

    def wrong(self: SamPredictor, *given: object) -> object:
        masks, *others = predict(self, *given)
        own = self._decoder_precision == "auto"
        return (~masks if own else masks), *others

    monkeypatch.setattr(SamPredictor, "predict", wrong)
    with pytest.raises(SamtrtError, match="nothing was timed"):
        end_to_end.measure_end_to_end(sam, picture, repeats=1)


def test_measure_everything(sam: Sam, picture: np.ndarray) -> None:
    arguments = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    generator = SamAutomaticMaskGenerator(sam, **arguments)
    result = end_to_end.measure_everything(generator, picture, repeats=2)
    expected = len(generator.generate(picture))
    assert (result.points, result.masks) == (9, expected)
    assert 0 < result.p50 <= result.p90

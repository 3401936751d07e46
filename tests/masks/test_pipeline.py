"""The older name of the fast path gives SamPredictor's masks."""

import numpy as np
import pytest
import torch
from oracle import tiny_config

from samtrt import Pipeline, SamPredictor
from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import InputError
from samtrt.masks.predictor import ImageNotSetError
from samtrt.sam import sam_from_parameters

POINTS, LABELS = np.array([[40.0, 50.0], [90.5, 20.0]]), np.array([1, 0])


def test_masks_and_scores_are_the_predictors() -> None:
    sam = sam_from_parameters(random_parameters(tiny_config()), device="cpu", precision="fp32")
    picture = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    pipeline = Pipeline(sam)
    with pytest.raises(ImageNotSetError, match="set_image"):
        pipeline.predict(POINTS, LABELS)
    for multimask in (True, False):
        expected = predictor.predict(POINTS, LABELS, multimask_output=multimask)
        found = pipeline(picture, POINTS, LABELS, multimask_output=multimask)
        assert len(found) == 2
        for a, b in zip(found, expected, strict=False):
            np.testing.assert_array_equal(a, b)
    half = Pipeline(sam, torch.bfloat16)
    assert half.predictor.decoder is sam.get_decoder("bf16")
    with pytest.raises(InputError, match="float64"):
        Pipeline(sam, torch.float64)

"""The end-to-end pipeline gives SamPredictor's masks; on a GPU, by its own road."""

import json

import numpy as np
import pytest
import skimage.data
import torch
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.decoders.graphed import GraphedMaskDecoder
from samtrt.errors import InputError, SamtrtError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.pipeline import IMAGE_STAGES, PROMPT_STAGES, Pipeline, StageClock
from samtrt.masks.predictor import ImageNotSetError, SamPredictor
from samtrt.modeling.prompt_encoder import prompt_points
from samtrt.reports import end_to_end
from samtrt.sam import Sam, sam_from_parameters

CONFIG = tiny_config()
POINTS, LABELS = np.array([[40.0, 50.0], [90.5, 20.0]]), np.array([1, 0])
BOX = np.array([10, 20, 100, 80])
GPU = pytest.mark.gpu


@pytest.fixture(scope="module")
def sam() -> Sam:
    return sam_from_parameters(random_parameters(CONFIG), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:100, :140])


PROMPTS = [
    {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
    {"point_coords": POINTS, "point_labels": LABELS},
    {"box": BOX},
    {"point_coords": POINTS, "point_labels": LABELS, "box": BOX},
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("multimask_output", [True, False])
def test_masks_are_the_predictors(
    sam: Sam, picture: np.ndarray, prompt: dict, multimask_output: bool
) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    expected, expected_scores, _ = predictor.predict(**prompt, multimask_output=multimask_output)
    pipeline = Pipeline(sam)
    masks, scores = pipeline(picture, **prompt, multimask_output=multimask_output)
    np.testing.assert_array_equal(masks, expected)
    np.testing.assert_array_equal(scores, expected_scores)


def test_results_survive_the_next_call_and_the_next_picture(sam: Sam, picture: np.ndarray) -> None:
    pipeline = Pipeline(sam)
    masks, scores = pipeline(picture, **PROMPTS[0])
    kept_masks, kept_scores = masks.copy(), scores.copy()
    other = np.ascontiguousarray(picture[::-1, :80])
    other_masks, _ = pipeline(other, **PROMPTS[2])
    assert other_masks.shape == (3, 100, 80)
    np.testing.assert_array_equal(masks, kept_masks)
    np.testing.assert_array_equal(scores, kept_scores)
    again, _ = pipeline(picture, **PROMPTS[0])
    np.testing.assert_array_equal(again, kept_masks)


def test_bad_input(sam: Sam, picture: np.ndarray) -> None:
    pipeline = Pipeline(sam)
    with pytest.raises(ImageNotSetError, match="set_image"):
        pipeline.predict(**PROMPTS[0])
    pipeline.set_image(picture)
    with pytest.raises(InputError, match="without a prompt"):
        pipeline.predict()
    with pytest.raises(InputError, match="2 points came with 1 labels"):
        pipeline.predict(POINTS, LABELS[:1])
    with pytest.raises(InputError, match="float64"):
        pipeline.set_image(picture / 255)
    pipeline.predict(**PROMPTS[0])  # a refused picture leaves the one that was set


def test_a_clock_names_every_stage(sam: Sam, picture: np.ndarray) -> None:
    pipeline = Pipeline(sam)
    clock = StageClock(pipeline.device)
    pipeline.set_image(picture, clock)
    pipeline.predict(**PROMPTS[0], mark=clock)
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
    monkeypatch.setattr(
        Pipeline, "predict", lambda self, *_, **__: (np.ones((3, 100, 140), bool), np.ones(3))
    )
    with pytest.raises(SamtrtError, match="nothing was timed"):
        end_to_end.measure_end_to_end(sam, picture, repeats=1)


def test_measure_everything(sam: Sam, picture: np.ndarray) -> None:
    arguments = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    generator = SamAutomaticMaskGenerator(sam, **arguments)
    result = end_to_end.measure_everything(generator, picture, repeats=2)
    expected = len(generator.generate(picture))
    assert (result.points, result.masks) == (9, expected)
    assert 0 < result.p50 <= result.p90


def test_half_precision_decoder_stays_close(sam: Sam) -> None:
    """What the GPU computes in, on the CPU: fp16 masks against fp32 ones."""
    decoder = GraphedMaskDecoder(sam.decoder, torch.float16)
    features = torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder.set_features(features)
    points = 128 * torch.rand(32, 1, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.ones(32, 1)
    expected, expected_scores = sam.decode(features, (points, labels), None, None, True)
    coords, labels = prompt_points((points, labels), None)
    found, scores = decoder(coords, labels)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).norm() <= 5e-3 * expected.norm()
    assert (scores - expected_scores).abs().max() <= 0.02
    inter = ((found > 0) & (expected > 0)).sum()
    assert inter / ((found > 0) | (expected > 0)).sum() >= 0.99


@pytest.fixture(scope="module")
def gpu_sam() -> Sam:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    return sam_from_parameters(random_parameters(CONFIG), device="cuda")


def mean_iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum(axis=(1, 2))
    return float(np.mean(np.where(union == 0, 1, (a & b).sum(axis=(1, 2)) / union.clip(1))))


@GPU
@pytest.mark.parametrize("prompt", PROMPTS)
def test_gpu_masks_are_those_of_fp32_on_the_cpu(
    sam: Sam, gpu_sam: Sam, picture: np.ndarray, prompt: dict
) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    expected, _, _ = predictor.predict(**prompt)
    pipeline = Pipeline(gpu_sam)
    first, _ = pipeline(picture, **prompt)
    pipeline(np.ascontiguousarray(picture[::-1, :80]), **PROMPTS[2])
    again, _ = pipeline(picture, **prompt)
    assert mean_iou(first, expected) >= 0.99
    np.testing.assert_array_equal(first, again)


@GPU
def test_gpu_everything_is_what_the_cpu_finds(sam: Sam, gpu_sam: Sam, picture: np.ndarray) -> None:
    arguments = {
        "points_per_side": 5,
        "points_per_batch": 16,  # the last batch is not full
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    counts = []
    for mode in ("binary_mask", "uncompressed_rle"):
        records = SamAutomaticMaskGenerator(gpu_sam, output_mode=mode, **arguments).generate(
            picture
        )
        counts.append(len(records))
    expected = SamAutomaticMaskGenerator(sam, **arguments).generate(picture)
    assert abs(counts[0] - len(expected)) <= max(1, 0.02 * len(expected))
    assert counts[0] == counts[1]

"""The predictor and the generator on a GPU: the CPU's masks, by their own road."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
import torch
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.masks.runs import MaskRuns
from samtrt.masks.transfer import to_host
from samtrt.sam import Sam, sam_from_parameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

CONFIG = tiny_config()
POINTS, LABELS = np.array([[40.0, 50.0], [90.5, 20.0]]), np.array([1, 0])
BOX = np.array([10, 20, 100, 80])
PROMPTS = [
    {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
    {"point_coords": POINTS, "point_labels": LABELS},
    {"box": BOX},
    {"point_coords": POINTS, "point_labels": LABELS, "box": BOX},
]


@pytest.fixture(scope="module")
def cpu_sam() -> Sam:
    return sam_from_parameters(random_parameters(CONFIG), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def sam() -> Sam:
    return sam_from_parameters(random_parameters(CONFIG), device="cuda")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:100, :140])


def mean_iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum(axis=(1, 2))
    return float(np.mean(np.where(union == 0, 1, (a & b).sum(axis=(1, 2)) / union.clip(1))))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("decoder_precision", ["auto", "bf16", "fp32"])
def test_masks_are_those_of_fp32_on_the_cpu(
    cpu_sam: Sam, sam: Sam, picture: np.ndarray, prompt: dict, decoder_precision: str
) -> None:
    reference = SamPredictor(cpu_sam)
    reference.set_image(picture)
    expected, _, _ = reference.predict(**prompt)
    predictor = SamPredictor(sam, decoder_precision=decoder_precision)
    predictor.set_image(picture)
    first, _, low_res = predictor.predict(**prompt)
    predictor.set_image(np.ascontiguousarray(picture[::-1, :80]))
    predictor.predict(box=BOX)
    predictor.set_image(picture)
    again, _, _ = predictor.predict(**prompt)
    assert mean_iou(first, expected) >= (0.97 if decoder_precision == "bf16" else 0.99)
    np.testing.assert_array_equal(first, again)
    logits, _, _ = predictor.predict(**prompt, return_logits=True)
    assert logits.dtype == np.float32 and ((logits > 0) == first).mean() > 0.9999
    refined, _, _ = predictor.predict(**prompt, mask_input=low_res[:1], multimask_output=False)
    assert refined.shape == (1, 100, 140)


def test_a_batch_of_boxes(cpu_sam: Sam, sam: Sam, picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (100, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (100, 2))], axis=1)
    found = []
    for model in (cpu_sam, sam):
        predictor = SamPredictor(model)
        predictor.set_image(picture)
        given = predictor.transform.apply_boxes_torch(torch.as_tensor(boxes), picture.shape[:2])
        masks, _, _ = predictor.predict_torch(
            None, None, given.to(model.device), multimask_output=False
        )
        assert masks.device.type == model.device.type and masks.is_contiguous()
        found.append(masks[:, 0].cpu().numpy())
    assert mean_iou(*found) >= 0.99


def test_everything_is_what_the_cpu_finds(cpu_sam: Sam, sam: Sam, picture: np.ndarray) -> None:
    arguments = {
        "points_per_side": 5,
        "points_per_batch": 16,  # the last batch is not full
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    counts = []
    for mode in ("binary_mask", "uncompressed_rle"):
        generator = SamAutomaticMaskGenerator(sam, output_mode=mode, **arguments)
        counts.append(len(generator.generate(picture)))
    expected = SamAutomaticMaskGenerator(cpu_sam, **arguments).generate(picture)
    assert abs(counts[0] - len(expected)) <= max(1, 0.02 * len(expected))
    assert counts[0] == counts[1]


def test_predictors_in_threads_and_streams_have_their_own_pictures(
    sam: Sam, picture: np.ndarray
) -> None:
    pictures = [np.ascontiguousarray(np.roll(picture, 20 * i, axis=1)) for i in range(6)]

    def answer(index: int) -> tuple[np.ndarray, ...]:
        predictor = SamPredictor(sam)
        predictor.set_image(pictures[index])
        return predictor.predict(POINTS, LABELS)

    expected = [answer(index) for index in range(6)]
    barrier = threading.Barrier(6)

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            barrier.wait()
            for turn in range(10):
                which = (index + turn) % 6
                for a, b in zip(answer(which), expected[which], strict=True):
                    np.testing.assert_array_equal(a, b)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))


def test_a_move_gives_the_memory_back(picture: np.ndarray) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    model = sam_from_parameters(random_parameters(CONFIG), device="cuda")
    predictor = SamPredictor(model)
    predictor.set_image(picture)
    predictor.predict(POINTS, LABELS)
    used = torch.cuda.memory_allocated() - before
    predictor.reset_image()
    model.to("cpu")
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 0.05 * used
    predictor.set_image(picture)
    assert predictor.predict(POINTS, LABELS)[0].shape == (3, 100, 140)


def test_what_comes_back_pins_no_memory() -> None:
    masks = torch.rand(3, 700, 900, device="cuda") > 0.5
    scores = torch.rand(3, device="cuda")
    found = to_host(masks, scores, masks[:0], masks.transpose(1, 2))
    for array, tensor in zip(found, (masks, scores, masks[:0], masks.transpose(1, 2)), strict=True):
        np.testing.assert_array_equal(array, tensor.cpu().numpy())
        assert not torch.from_numpy(array).is_pinned() and array.flags.writeable
    for array, mask in zip(
        MaskRuns.from_masks(masks).to_arrays(), masks.cpu().numpy(), strict=True
    ):
        np.testing.assert_array_equal(array, mask)
        assert not torch.from_numpy(array).is_pinned()

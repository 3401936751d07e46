"""A program written for segment_anything, run on both packages with the demo checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam
from test_automatic import loop_nms, mean_best_iou

import samtrt
from samtrt.checkpoints.meta import read_checkpoint
from samtrt.pictures.reading import load_image
from samtrt.reports.peers import import_segment_anything

EXAMPLES = Path(__file__).parents[2] / "examples" / "sam"
CHECKPOINT = EXAMPLES / "sam_models" / "sam_demo.pth"
PICTURES = sorted((EXAMPLES / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def meta() -> tuple[Any, Any]:
    """Meta's package, and its Sam with the demo checkpoint (its registry knows three sizes)."""
    parameters = read_checkpoint(CHECKPOINT)
    return import_segment_anything(), meta_sam(parameters.encoder_config, parameters=parameters)


@pytest.fixture(scope="module")
def ours() -> Any:
    return samtrt.sam_model_registry["vit_b"](checkpoint=str(CHECKPOINT))


def program(package: Any, sam: Any, images: list[np.ndarray]) -> list[np.ndarray]:
    """What a user's program does; nothing in it knows whose package it runs on.

    Returns:
        The masks of all calls, [N, H, W] each.
    """
    sam.to(device="cpu")
    sam.eval()
    predictor = package.SamPredictor(sam)
    found = []
    for image in images:
        height, width = image.shape[:2]
        predictor.set_image(image)
        for x, y in ((0.5, 0.5), (0.78, 0.45)):
            point, label = np.array([[x * width, y * height]]), np.array([1])
            masks, scores, logits = predictor.predict(point, label, multimask_output=True)
            found.append(masks)
            best = logits[scores.argmax()][None]
            masks, _, _ = predictor.predict(
                point_coords=np.concatenate([point, [[0, 0]]]),
                point_labels=np.array([1, 0]),
                mask_input=best,
                multimask_output=False,
            )
            found.append(masks)
        boxes = torch.tensor([[0.2, 0.2, 0.6, 0.7], [0.5, 0.3, 0.9, 0.8], [0.0, 0.0, 0.3, 0.3]])
        boxes = boxes * torch.tensor([width, height, width, height])
        boxes = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
        masks, _, _ = predictor.predict_torch(None, None, boxes, multimask_output=False)
        found.append(masks[:, 0].numpy())
    return found


def test_same_program_same_masks(meta: tuple[Any, Any], ours: Any) -> None:
    images = [load_image(PICTURES[0]), load_image(PICTURES[1])[100:700, :900]]
    expected = program(*meta, images)
    found = program(samtrt, ours, images)
    assert len(found) == len(expected)
    ious, areas = [], []
    for theirs, mine in zip(expected, found, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype == bool
        union = (theirs | mine).sum(axis=(1, 2))
        ious += np.where(union, (theirs & mine).sum(axis=(1, 2)) / union.clip(1), 1.0).tolist()
        areas += theirs.mean(axis=(1, 2)).tolist()
    assert min(ious) >= 0.995
    assert np.mean([0.001 < area < 0.9 for area in areas]) > 0.5, "the masks show nothing"


def test_masks_after_the_gpus_resize_are_metas(meta: tuple[Any, Any], ours: Any) -> None:
    """What a GPU does before the encoder: torch's antialiased resize in place of Pillow's."""
    package, theirs = meta
    image = np.repeat(np.repeat(load_image(PICTURES[0]), 2, axis=0), 2, axis=1)[:1080, :1920]
    expected, found = package.SamPredictor(theirs), samtrt.SamPredictor(ours)
    expected.set_image(image)
    on_device = torch.from_numpy(image).permute(2, 0, 1)[None]
    found.set_torch_image(found.transform.apply_image_torch(on_device), image.shape[:2])
    ious = []
    for x, y in ((960, 540), (500, 700), (1400, 300)):
        prompt = np.array([[x, y]]), np.array([1])
        for a, b in zip(found.predict(*prompt)[0], expected.predict(*prompt)[0], strict=True):
            ious.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    assert min(ious) >= 0.99


@pytest.mark.slow
def test_same_automatic_masks(
    meta: tuple[Any, Any], ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, theirs = meta
    monkeypatch.setattr(package.automatic_mask_generator, "batched_nms", loop_nms)
    image = load_image(PICTURES[-1])
    arguments = {
        "points_per_side": 7,
        "pred_iou_thresh": 0.7,
        "stability_score_thresh": 0.85,
        "output_mode": "uncompressed_rle",
    }
    expected = package.SamAutomaticMaskGenerator(theirs, **arguments).generate(image)
    found = samtrt.SamAutomaticMaskGenerator(ours, **arguments).generate(image)
    assert len(expected) >= 5, "the case shows nothing"
    assert abs(len(found) - len(expected)) <= 0.02 * len(expected)
    assert mean_best_iou(found, expected) >= 0.99

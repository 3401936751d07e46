"""One mask a prompt, as Meta's SamPredictor makes it; batches and boxes that reach out."""

from typing import Any

import numpy as np
import pytest
from oracle import meta_sam, tiny_config
from server_support import picture

from samtrt.checkpoints.parameters import random_parameters
from samtrt.decoders.prompts import Prompt
from samtrt.errors import InputError
from samtrt.masks.prompted import SamPromptedMaskGenerator
from samtrt.masks.runs import coco_decode_rle
from samtrt.reports.peers import import_segment_anything
from samtrt.sam import Sam, sam_from_parameters

CONFIG = tiny_config(img_size=256)
SEED = 3
PICTURE = picture(1)  # 150 × 200
PROMPTS = [
    Prompt(box=(20, 30, 160, 120)),
    Prompt(((60, 70),), (1,)),
    Prompt(box=(0, 0, 60.5, 60)),
    Prompt(((60, 70), (120.5, 30)), (1, 0), (20, 30, 160, 120)),
    Prompt(((60, 70), (10, 140)), (1, 0)),
    Prompt(box=(100, 80, 200, 150)),
]


@pytest.fixture(scope="module")
def model() -> Sam:
    return sam_from_parameters(random_parameters(CONFIG, SEED), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def meta() -> Any:
    predictor = import_segment_anything().SamPredictor(meta_sam(CONFIG, SEED))
    predictor.set_image(PICTURE)
    return predictor


def by_meta(meta: Any, prompt: Prompt, multimask: bool) -> tuple[np.ndarray, float]:
    """Meta's mask with the best score, and the score."""
    points = np.array(prompt.point_coords) if prompt.point_coords else None
    labels = np.array(prompt.point_labels) if prompt.point_labels else None
    box = None if prompt.box is None else np.array(prompt.box)
    masks, scores, _ = meta.predict(points, labels, box, multimask_output=multimask)
    best = int(scores.argmax())
    return masks[best], float(scores[best])


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_each_prompt_has_metas_mask_and_score(
    model: Sam, meta: Any, multimask: bool, at_once: int
) -> None:
    generator = SamPromptedMaskGenerator(model, at_once, multimask)
    seen = []
    records = generator.generate(PICTURE, PROMPTS, lambda *done: seen.append(done))
    assert seen[-1] == (len(PROMPTS), len(PROMPTS))
    assert len(records) == len(PROMPTS)
    found = []
    for record, prompt in zip(records, PROMPTS, strict=True):
        expected, score = by_meta(meta, prompt, multimask)
        mask = coco_decode_rle(record["segmentation"])
        union = np.logical_or(mask, expected).sum()
        assert np.logical_and(mask, expected).sum() >= 0.995 * union
        assert record["predicted_iou"] == pytest.approx(score, abs=1e-3)
        assert record["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        x, y, width, height = record["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max(), rows.max())
        found.append(mask)
    assert any(not np.array_equal(found[0], other) for other in found[1:])  # each has its own


def test_what_was_asked_is_kept(model: Sam) -> None:
    records = SamPromptedMaskGenerator(model).generate(PICTURE, PROMPTS)
    assert records[0]["prompt_box"] == [20, 30, 140, 90] and "point_coords" not in records[0]
    assert records[1]["point_coords"] == [[60, 70]] and records[1]["point_labels"] == [1]
    assert records[3]["point_labels"] == [1, 0] and records[3]["prompt_box"] == [20, 30, 140, 90]


def test_an_embedded_picture_has_the_same_masks(model: Sam) -> None:
    generator = SamPromptedMaskGenerator(model)
    embedded = model.embed(PICTURE)
    assert generator.generate_embedded(embedded, PROMPTS) == generator.generate(PICTURE, PROMPTS)


def test_a_box_that_reaches_out_is_cut_and_one_outside_refused(model: Sam) -> None:
    generator = SamPromptedMaskGenerator(model)
    cut, inside = generator.generate(
        PICTURE, [Prompt(box=(-3, 100, 250, 170)), Prompt(box=(0, 100, 200, 150))]
    )
    assert cut == inside and cut["prompt_box"] == [0, 100, 200, 50]
    with pytest.raises(InputError, match=r"prompt 2 of 2: the box 200 0 210 9 reaches outside"):
        generator.generate(PICTURE, [PROMPTS[0], Prompt(box=(200, 0, 210, 9))])
    with pytest.raises(InputError, match=r"prompt 1 of 1: the point 200 3 is outside"):
        generator.generate(PICTURE, [Prompt(((200, 3),), (1,))])


def test_without_prompts_nothing_is_encoded(model: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sam, "embed", lambda *_: pytest.fail("encoded"))
    assert SamPromptedMaskGenerator(model).generate(PICTURE, []) == []


def test_bad_arguments(model: Sam) -> None:
    with pytest.raises(InputError, match="prompts_per_batch is 0"):
        SamPromptedMaskGenerator(model, 0)
    with pytest.raises(InputError, match="uint8"):
        SamPromptedMaskGenerator(model).generate(PICTURE.astype(float), [])  # type: ignore[arg-type]

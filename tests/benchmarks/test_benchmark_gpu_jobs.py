"""The benchmark of jobs on GPUs: the pace of a job's middle, GPUs' load, Meta's loop."""

import json
from pathlib import Path

import numpy as np
import pytest
from server_support import tiny_model

from benchmarks import gpu_jobs
from samtrt.masks.predictor import SamPredictor
from samtrt.pictures.reading import load_image


def test_the_pace_is_that_of_a_jobs_middle() -> None:
    slow_ends = [0.0, *(50 + number for number in range(101)), 1000.0]
    begin, end, pace = gpu_jobs.steady(slow_ends[::-1])
    assert (begin, end) == (75.0, 141.0) and pace == pytest.approx(1.0)
    together = [float(8 * (number // 8)) for number in range(200)]  # eight at a time
    assert gpu_jobs.steady(together)[2] == pytest.approx(1.0, rel=0.02)


def test_load_is_a_mean_for_each_gpu() -> None:
    lines = ["0, 90\n", "1, 0\n", "0, 100\n", "[N/A]\n", "1, [N/A]\n", "1, 50\n"]
    assert gpu_jobs.shares(lines) == {"0": pytest.approx(0.95), "1": pytest.approx(0.25)}


def test_boxes_lie_in_their_picture() -> None:
    for boxes in gpu_jobs.draw_boxes(5):
        assert boxes.shape == (gpu_jobs.BOXES, 4) and boxes.min() >= 0
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes[:, 2:] <= gpu_jobs.SIZE[::-1]).all()


def test_metas_loop_and_ours_have_the_same_ellipses(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    gpu_jobs.draw_pictures(tmp_path / "pictures", 1)
    (picture,) = (tmp_path / "pictures").iterdir()
    (boxes,) = gpu_jobs.draw_boxes(1)
    rows = (tmp_path / "boxes.csv").read_text().splitlines()[1:]
    given = [[float(cell) for cell in row.split(",")[1:]] for row in rows]
    assert np.allclose(given, boxes) and rows[0].startswith(f"{picture.name},")
    meta = gpu_jobs.Meta(tiny_model(), "cpu", 2, is_half=False)
    meta(picture, boxes[:3], tmp_path / "masks.json")
    records = json.loads((tmp_path / "masks.json").read_text())
    sam = gpu_jobs.load_with_ellipses(tiny_model() / "engine", tiny_model(), "cpu")
    predictor = SamPredictor(sam)
    predictor.set_image(load_image(picture))
    for record, box in zip(records, boxes[:3], strict=True):
        masks, scores, _ = predictor.predict(box=box, multimask_output=False)
        drawn = coco.decode(record["segmentation"]).astype(bool)
        x0, y0, x1, y1 = box
        assert drawn.sum() == pytest.approx(np.pi / 4 * (x1 - x0) * (y1 - y0), rel=0.03)
        assert (drawn & masks[0]).sum() > 0.6 * (drawn | masks[0]).sum()  # which is coarse
        assert record["predicted_iou"] == pytest.approx(float(scores[0]), abs=1e-3)

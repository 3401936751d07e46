"""Masks as COCO data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtrt.files import without_nan
from samtrt.masks.runs import require_pycocotools

CATEGORIES: tuple[dict[str, Any], ...] = ({"id": 1, "name": "object"},)  # SAM knows only one


def coco_dataset(
    name: Path,
    size: tuple[int, int],
    records: list[dict[str, Any]],
    categories: Sequence[dict[str, Any]] = CATEGORIES,
) -> Any:
    """A COCO data set of one picture, as ``json`` can write it.

    Args:
        name: the picture's file, as the data set shall call it.
        size: the picture's (height, width).
        records: the generator's, with ``output_mode="coco_rle"``. Their further fields stay in
            the annotations, and ``predicted_iou`` is the ``score`` as well. ``bbox`` is
            pycocotools' (x, y, width, height in whole pixels, both outermost ones inside), which
            is a pixel wider and higher than in Meta's records. Without ``category_id`` one has the
            first category's.
        categories: COCO's.

    Raises:
        SamtrtError: pycocotools is not installed.
    """
    height, width = size
    masks = [
        {**record["segmentation"], "counts": record["segmentation"]["counts"].encode("ascii")}
        for record in records
    ]
    boxes = require_pycocotools().toBbox(masks).tolist() if masks else []
    numbered = {"image_id": 1, "category_id": categories[0]["id"], "iscrowd": 0}
    return {
        "images": [{"id": 1, "width": width, "height": height, "file_name": name.as_posix()}],
        "annotations": [
            without_nan({"id": number, **numbered, **record, "bbox": box, **_score(record)})
            for number, (record, box) in enumerate(zip(records, boxes, strict=True), start=1)
        ],
        "categories": list(categories),
    }


def _score(record: dict[str, Any]) -> dict[str, Any]:
    """As programs that read COCO's results call it."""
    return {"score": record["predicted_iou"]} if "predicted_iou" in record else {}

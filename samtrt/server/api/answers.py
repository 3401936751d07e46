"""Masks as answers have them: run lengths, polygons, PNG."""

import base64
import io
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from samtrt.formats.coco import flat_polygons
from samtrt.formats.polygons import outline
from samtrt.masks.runs import require_pycocotools
from samtrt.server.problems import RequestError

MaskFormat = Literal["rle", "polygon", "png"]


def mask_fields(
    mask: npt.NDArray[np.bool_], form: MaskFormat, tolerance: float, max_runs: int
) -> dict[str, Any]:
    """A mask as ``schemas.Mask`` fields: its form, area and box.

    Args:
        mask: [H, W].
        form: how it is written.
        tolerance: of polygons, in pixels; see ``polygons.outline``.
        max_runs: run lengths past which a mask is made no polygon.

    Raises:
        RequestError: 422, the mask is too intricate for polygons.
    """
    mask_utils = require_pycocotools()
    runs = mask_utils.encode(np.asfortranarray(mask))
    fields: dict[str, Any] = {
        "area": int(mask_utils.area(runs)),
        "bbox": mask_utils.toBbox(runs).tolist(),
    }
    if form == "rle":
        size_and_counts = {"size": runs["size"], "counts": runs["counts"].decode("ascii")}
        return {"segmentation": size_and_counts, **fields}
    if form == "png":
        return {"png": png_of(mask), **fields}
    changes = int(np.count_nonzero(mask[:, 1:] != mask[:, :-1]))
    if changes > max_runs:
        raise RequestError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"a mask has {changes:,} run lengths, and polygons are made of up to {max_runs:,}; "
            "ask for the format rle or png",
        )
    return {"segmentation": flat_polygons(outline(mask, tolerance)), **fields}


def png_of(mask: npt.NDArray[np.bool_]) -> str:
    """A mask [H, W] as a PNG of one bit a pixel, white on the object, in base64."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def text_of_logits(logits: npt.NDArray[np.float32]) -> str:
    """Logits [4h, 4w] as ``mask_input`` takes them: little-endian float32 in base64."""
    return base64.b64encode(logits.astype("<f4", copy=False).tobytes()).decode("ascii")

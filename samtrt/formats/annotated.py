"""A picture's masks, as the JSON beside it has them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from samtrt.masks.coco import CATEGORIES
from samtrt.masks.runs import coco_decode_crop, coco_decode_rle
from samtrt.pictures.rasters import Georeference

WRITTEN_BY = "samtrt"  # stands within the first bytes of every file that is written here
_FIRST_BYTES = 400


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture and its masks.

    Attributes:
        name: the picture's file, as the data set calls it.
        size: (height, width) in pixels.
        annotations: COCO's, with compressed run lengths, as ``coco_dataset`` makes them.
        sha256: of the data set that they were read from.
        categories: COCO's; all pictures of a job have the same.
        georeference: where the picture lies on Earth; None where that is not known.
    """

    name: Path
    size: tuple[int, int]
    annotations: list[dict[str, Any]]
    sha256: str = ""
    categories: Sequence[dict[str, Any]] = CATEGORIES
    georeference: Georeference | None = None

    def category_of(self, annotation: dict[str, Any]) -> str:
        """The name of what an annotation is."""
        number = annotation.get("category_id", self.categories[0]["id"])
        names = (one["name"] for one in self.categories if one["id"] == number)
        return str(next(names, number))

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The annotations that have a pixel."""
        return [annotation for annotation in self.annotations if annotation["area"]]

    def by_area(self) -> list[dict[str, Any]]:
        """The annotations, large ones first, so that small ones come to lie on them."""
        return sorted(self.annotations, key=lambda annotation: -annotation["area"])


def score_of(annotation: dict[str, Any]) -> float | None:
    """The mask's score; files of before ``score`` was written have the predicted IoU alone."""
    score: float | None = annotation.get("score", annotation.get("predicted_iou"))
    return score


def mask_of(annotation: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """The mask of an annotation, [H, W]."""
    return coco_decode_rle(annotation["segmentation"])


def crop_of(annotation: dict[str, Any]) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
    """The part of a mask that has pixels, [h, w], and the (x, y) of its corner in the picture."""
    return coco_decode_crop(annotation["segmentation"])


def to_text(value: Any) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def joined(items: Iterable[str]) -> Iterator[str]:
    """The items of a JSON array, each in a line of its own, with commas between them."""
    for number, item in enumerate(items):
        yield f"{',' if number else ''}\n{item}"


def is_ours(path: Path) -> bool:
    """Whether a file was written by this package: its first bytes say so."""
    return WRITTEN_BY in first_text(path)


def begins_as_ours(file: IO[bytes]) -> bool:
    """``is_ours`` of an open file."""
    return WRITTEN_BY in file.read(_FIRST_BYTES).decode("utf-8", "replace")


def first_text(path: Path) -> str:
    """The beginning of a text file; empty where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return file.read(_FIRST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""

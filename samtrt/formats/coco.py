"""One COCO data set of many pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samtrt.files import replacing
from samtrt.formats.annotated import (
    WRITTEN_BY,
    AnnotatedPicture,
    joined,
    score_of,
    to_text,
)
from samtrt.formats.polygons import outline_of, without_holes
from samtrt.masks.coco import CATEGORIES
from samtrt.masks.runs import require_pycocotools

Categories = Sequence[dict[str, Any]]


def write_coco(
    path: Path, pictures: Iterable[AnnotatedPicture], categories: Categories = CATEGORIES
) -> None:
    """Writes the pictures' annotations, numbered anew, with compressed run lengths.

    Args:
        categories: COCO's, of all pictures.

    Raises:
        SamtrtError: the file cannot be written.
    """
    _write(path, pictures, lambda annotation: annotation, categories)


def write_coco_polygons(
    path: Path,
    pictures: Iterable[AnnotatedPicture],
    tolerance: float,
    categories: Categories = CATEGORIES,
) -> None:
    """``write_coco`` with polygons.

    COCO has no holes: a mask with holes is cut into pieces that have none (``without_holes``).
    ``area`` and ``bbox`` are pycocotools' of the polygons. A mask without pixels has no polygon
    and is left out.

    Args:
        tolerance: see ``outline``.
    """
    _write(path, pictures, lambda annotation: with_polygons(annotation, tolerance), categories)


def with_polygons(annotation: dict[str, Any], tolerance: float) -> dict[str, Any] | None:
    """The annotation with polygons in the place of its run lengths; None for an empty mask."""
    size = annotation["segmentation"]["size"]
    mask_utils = require_pycocotools()
    polygons = flat_polygons(outline_of(annotation, tolerance))
    encoded = mask_utils.merge(mask_utils.frPyObjects(polygons, *size)) if polygons else None
    if encoded is not None and tolerance and not mask_utils.area(encoded):
        polygons = flat_polygons(outline_of(annotation))
        encoded = mask_utils.merge(mask_utils.frPyObjects(polygons, *size))
    if encoded is None:
        return None
    return {
        **annotation,
        "segmentation": polygons,
        "area": int(mask_utils.area(encoded)),
        "bbox": mask_utils.toBbox(encoded).tolist(),
    }


def flat_polygons(parts: list[Any]) -> list[list[float]]:
    """Polygons as COCO has them: [x, y, x, y, …] each, without holes.

    Args:
        parts: shapely's, as of ``outline``.
    """
    pieces = without_holes(parts)
    rings = (np.asarray(piece.exterior.coords)[:-1] for piece in pieces)
    return [ring.round(2).ravel().tolist() for ring in rings]


def _write(
    path: Path, pictures: Iterable[AnnotatedPicture], convert: Any, categories: Categories
) -> None:
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[str]:
        number = 0
        for image_id, picture in enumerate(pictures, start=1):
            height, width = picture.size
            name = picture.name.as_posix()
            images.append({"id": image_id, "width": width, "height": height, "file_name": name})
            for annotation in picture.annotations:
                if (converted := convert(annotation)) is not None:
                    number += 1
                    ids = {"id": number, "image_id": image_id}
                    yield to_text({**converted, **ids, "score": score_of(annotation)})

    head = {"info": {"description": f"masks by {WRITTEN_BY}"}, "licenses": []}
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        # A piece at a time: the masks of a large folder need not fit into memory.
        file.write(f'{to_text(head)[:-1]}, "categories": {to_text(list(categories))},\n')
        file.write('"annotations": [')
        file.writelines(joined(annotations()))
        file.write('\n],\n"images": [')
        file.writelines(joined(map(to_text, images)))
        file.write("\n]}\n")

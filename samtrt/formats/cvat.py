"""Masks as "CVAT for images 1.1": XML with run lengths within each mask's box."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from samtrt.console import one_line
from samtrt.files import replacing
from samtrt.formats.annotated import WRITTEN_BY, AnnotatedPicture, crop_of, score_of
from samtrt.masks.coco import CATEGORIES

_HEAD = """<?xml version="1.0" encoding="utf-8"?>
<!-- masks by {written_by} -->
<annotations>
  <version>1.1</version>
  <meta><task><labels>{labels}</labels></task></meta>
"""
_LABEL = """<label>
    <name>{name}</name>
    <attributes><attribute>
      <name>score</name><mutable>False</mutable><input_type>text</input_type>
      <default_value></default_value><values></values>
    </attribute></attributes>
  </label>"""


def write_cvat(
    path: Path,
    pictures: Iterable[AnnotatedPicture],
    categories: Sequence[dict[str, Any]] = CATEGORIES,
) -> None:
    """Writes all pictures' masks; one without pixels is left out.

    Args:
        categories: COCO's, of all pictures.

    Raises:
        SamtrtError: the file cannot be written.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        labels = "".join(
            _LABEL.format(name=escape(one_line(category["name"]))) for category in categories
        )
        file.write(_HEAD.format(written_by=WRITTEN_BY, labels=labels))
        for number, picture in enumerate(pictures):
            file.writelines(_image(number, picture))
        file.write("</annotations>\n")


def _image(number: int, picture: AnnotatedPicture) -> Iterator[str]:
    height, width = picture.size
    name = quoteattr(one_line(picture.name.as_posix()))
    yield f'  <image id="{number}" name={name} width="{width}" height="{height}">\n'
    for order, annotation in enumerate(picture.by_area()):
        if annotation["area"]:
            yield _mask(order, annotation, picture.category_of(annotation))
    yield "  </image>\n"


def _mask(order: int, annotation: dict[str, Any], category: str) -> str:
    mask, (left, top) = crop_of(annotation)
    height, width = mask.shape
    counts = ", ".join(map(str, row_counts(mask)))
    return (
        f'    <mask label={quoteattr(one_line(category))} source="auto" occluded="0" '
        f'rle="{counts}" left="{left}" '
        f'top="{top}" width="{width}" height="{height}" z_order="{order}">'
        f'<attribute name="score">{score_of(annotation) or 0:.4f}</attribute></mask>\n'
    )


def row_counts(mask: Any) -> list[int]:
    """Lengths of the runs of a mask [H, W] row by row, background first (0 where there is none)."""
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts: list[int] = np.diff(changes, prepend=0, append=flat.size).tolist()
    return counts

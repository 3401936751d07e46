"""Masks as YOLO's segmentation labels: a text file a picture, and ``data.yaml``."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from samtrt.errors import InputError
from samtrt.files import replacing
from samtrt.formats.annotated import WRITTEN_BY, AnnotatedPicture, to_text
from samtrt.formats.polygons import one_ring, outline_of, without_holes
from samtrt.masks.coco import CATEGORIES

_YAML_WORDS = ("yes", "off", "true", "false", "null")  # which are no texts
_DATA = f"""# masks by {WRITTEN_BY}; the pictures belong into images/, in the same subfolders
path: .
train: images
val: images
names:
"""


def check_names(names: Iterable[Path]) -> None:
    """Refuses pictures whose labels would be one file: YOLO leaves the suffix out.

    Raises:
        InputError: there are such.
    """
    sharing = defaultdict(list)
    for name in names:
        sharing[label_name(name)].append(name)
    for label, pictures in sharing.items():
        if len(pictures) > 1:
            raise InputError(
                f"{pictures[0]} and {pictures[1]} would share YOLO's {label.as_posix()}; rename "
                "one of them"
            )


def write_yolo(
    folder: Path,
    pictures: Iterable[AnnotatedPicture],
    tolerance: float,
    categories: Sequence[dict[str, Any]] = CATEGORIES,
) -> None:
    """Writes ``data.yaml`` and ``labels/NAME.txt``; a picture without masks has an empty one.

    A line is ``0 x y x y …``: the place of its category among all, then fractions of the picture's
    width and height: one ring a mask. Parts and holes are joined to it by bridges without area
    (``one_ring``).

    Args:
        tolerance: see ``outline``.
        categories: COCO's, of all pictures.

    Raises:
        SamtrtError: a file cannot be written.
    """
    names = "".join(
        f"  {place}: {_yaml(category['name'])}\n" for place, category in enumerate(categories)
    )
    with replacing(folder / "data.yaml") as temporary:
        temporary.write_text(_DATA + names, "utf-8")
    for picture in pictures:
        lines = (label_line(picture, annotation, tolerance) for annotation in picture.shown)
        with replacing(folder / label_name(picture.name)) as temporary:
            temporary.write_text("".join(lines), "utf-8")


def label_name(name: Path) -> Path:
    """Where the label of a picture lies, below the data set's folder."""
    return Path("labels", PurePath(name).with_suffix(".txt"))


def label_line(picture: AnnotatedPicture, annotation: dict[str, Any], tolerance: float) -> str:
    """One mask's line, with its line feed."""
    height, width = picture.size
    ring = one_ring(without_holes(outline_of(annotation, tolerance)))
    shares = (ring / np.array([width, height])).ravel()
    numbers = [category["id"] for category in picture.categories]
    place = numbers.index(annotation.get("category_id", numbers[0]))
    return f"{place} {' '.join(f'{share:.6f}' for share in shares)}\n"


def _yaml(name: str) -> str:
    """A name as YAML has it: a plain word as it is, else as JSON's text, which YAML reads."""
    is_plain = re.fullmatch("[A-Za-z]{3,}", name) and name.lower() not in _YAML_WORDS
    return name if is_plain else to_text(name)

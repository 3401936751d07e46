"""A picture's masks as one PNG: each pixel has the number of its mask."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from samtrt.errors import InputError
from samtrt.files import write_bytes
from samtrt.formats.annotated import WRITTEN_BY, AnnotatedPicture, mask_of
from samtrt.pictures.drawing import palette_of, top_masks
from samtrt.pictures.reading import png_bytes, read_png_texts

_MOST = 65_535  # masks that 16 bits can tell apart


def write_labels(path: Path, picture: AnnotatedPicture) -> None:
    """Writes the label image: 0 where there is no mask, else the annotation's ``id``.

    Smaller masks lie on larger ones. Up to 255 masks it is a PNG with a palette, whose indices
    are the numbers; above, 16-bit grey. A file that has these masks already stays.

    Raises:
        InputError: more masks than 16 bits can number.
        SamtrtError: the file cannot be written.
    """
    if picture.sha256 and read_png_texts(path).get(WRITTEN_BY) == picture.sha256:
        return
    write_bytes(path, label_png(picture))


def label_png(picture: AnnotatedPicture) -> bytes:
    """What ``write_labels`` writes."""
    labels = label_image(picture)
    count = len(picture.annotations)
    palette = palette_of(count) if count < 256 else None
    kind = np.uint8 if palette is not None else np.uint16
    return png_bytes(labels.astype(kind), {WRITTEN_BY: picture.sha256}, palette)


def label_image(picture: AnnotatedPicture) -> npt.NDArray[np.int32]:
    """The number of each pixel's mask, 0 for none: [H, W]."""
    if len(picture.annotations) > _MOST:
        raise InputError(
            f"{picture.name} has {len(picture.annotations):,} masks, and a label image numbers "
            f"{_MOST:,} at most; raise the thresholds, or take another format"
        )
    ordered = picture.by_area()
    top = top_masks(picture.size, map(mask_of, ordered))
    numbers = np.array([0, *(annotation["id"] for annotation in ordered)], dtype=np.int32)
    return numbers[top]

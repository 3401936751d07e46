"""Masks as Label Studio's tasks: pre-annotations that its brush can edit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from samtrt.files import replacing
from samtrt.formats.annotated import (
    WRITTEN_BY,
    AnnotatedPicture,
    joined,
    mask_of,
    score_of,
    to_text,
)
from samtrt.formats.cvat import row_counts

# Where Label Studio serves local files from, as its own converter has it.
_LOCAL_FILES = "/data/local-files/?d="
# Bits that hold a run's length, less one: a run takes the first that it fits into.
_LENGTH_BITS = (3, 4, 8, 16)
_CHANNELS = 4  # RGBA, one byte each


def write_label_studio(path: Path, pictures: Iterable[AnnotatedPicture]) -> None:
    """Writes a task a picture; its masks are predictions of the label configuration::

        <View><Image name="image" value="$image"/>
        <BrushLabels name="label" toName="image"><Label value="object"/></BrushLabels></View>

    (with a ``Label`` for each of the categories).

    Raises:
        SamtrtError: the file cannot be written.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write("[")
        file.writelines(joined(to_text(_task(picture)) for picture in pictures))
        file.write("\n]\n")


def _task(picture: AnnotatedPicture) -> dict[str, Any]:
    results = [_result(picture, annotation) for annotation in picture.shown]
    return {
        "meta": {"masks_by": WRITTEN_BY},
        "data": {"image": _LOCAL_FILES + picture.name.as_posix()},
        "predictions": [{"model_version": WRITTEN_BY, "result": results}],
    }


def _result(picture: AnnotatedPicture, annotation: dict[str, Any]) -> dict[str, Any]:
    height, width = picture.size
    return {
        "id": f"mask-{annotation['id']}",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score_of(annotation),
        "value": {
            "format": "rle",
            "rle": brush_rle(mask_of(annotation)),
            "brushlabels": [picture.category_of(annotation)],
        },
    }


def brush_rle(mask: npt.NDArray[Any]) -> list[int]:
    """Label Studio's run lengths of a mask [H, W], as bytes.

    It packs (thi.ng/rle-pack) the RGBA bytes of a picture that is 255 inside the mask: 32 bits of
    how many, 5 of a byte's bits less one, 4 each of the four sizes of lengths less one; then each
    run as a 1, two bits for the size, the length less one, the value.
    """
    count = mask.size * _CHANNELS
    head = [f"{count:032b}", f"{8 - 1:05b}", *(f"{bits - 1:04b}" for bits in _LENGTH_BITS)]
    body = []
    for number, pixels in enumerate(row_counts(mask)):
        rest, value = pixels * _CHANNELS, f"{255 * (number % 2):08b}"
        while rest:
            length = min(rest, 1 << _LENGTH_BITS[-1])
            rest -= length
            which, bits = next(
                (i, bits) for i, bits in enumerate(_LENGTH_BITS) if length <= 1 << bits
            )
            body.append(f"1{which:02b}{length - 1:0{bits}b}{value}")
    text = "".join(head + body)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))

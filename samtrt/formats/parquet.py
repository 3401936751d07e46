"""Masks as a Parquet table: a row a mask, for queries over millions of them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from samtrt.errors import SamtrtError
from samtrt.files import replacing
from samtrt.formats.annotated import WRITTEN_BY, AnnotatedPicture, score_of
from samtrt.hints import install

_ROWS = 8_192  # of a row group, at least; all of a picture's masks are in one


def require_pyarrow() -> Any:
    """pyarrow, or one line on how to get it.

    Raises:
        SamtrtError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SamtrtError(
            f"parquet needs pyarrow, which is not installed; run `{install('ray')}`"
        ) from error
    return pyarrow


def write_parquet(path: Path, pictures: Iterable[AnnotatedPicture]) -> None:
    """Writes the pictures' masks, numbered through.

    Columns: ``picture`` (its name), ``height``, ``width``; ``id`` (from 1), ``category_id``,
    ``category``; ``box`` [x, y, width, height], ``area`` in pixels, ``score``, ``predicted_iou``,
    ``stability_score``; ``rle`` (COCO's compressed run lengths, as text). A picture without masks
    has no row.

    Raises:
        SamtrtError: the file cannot be written, or pyarrow is not installed.
    """
    pyarrow = require_pyarrow()
    real, whole, text = pyarrow.float64(), pyarrow.int64(), pyarrow.string()
    schema = pyarrow.schema(
        [
            ("picture", text), ("height", whole), ("width", whole),
            ("id", whole), ("category_id", whole), ("category", text),
            ("box", pyarrow.list_(real, 4)), ("area", whole),
            ("score", real), ("predicted_iou", real), ("stability_score", real),
            ("rle", text),
        ],
        metadata={"written_by": WRITTEN_BY},
    )  # fmt: skip
    with (
        replacing(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as file,
    ):
        rows: list[dict[str, Any]] = []
        number = 0
        for picture in pictures:
            rows += _rows(picture, number)
            number += len(picture.annotations)
            if len(rows) >= _ROWS:
                file.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        file.write_table(pyarrow.Table.from_pylist(rows, schema))


def is_our_parquet(path: Path | IO[bytes]) -> bool:
    """Whether a Parquet file was written by this package."""
    try:
        metadata = require_pyarrow().parquet.read_schema(path).metadata or {}
    except (OSError, ValueError):
        return False
    return bool(metadata.get(b"written_by") == WRITTEN_BY.encode())


def _rows(picture: AnnotatedPicture, before: int) -> Iterator[dict[str, Any]]:
    height, width = picture.size
    for number, annotation in enumerate(picture.annotations, start=before + 1):
        yield {
            "picture": picture.name.as_posix().encode("utf-8", "backslashreplace").decode(),
            "height": height,
            "width": width,
            "id": number,
            "category_id": annotation.get("category_id"),
            "category": picture.category_of(annotation),
            "box": annotation["bbox"],
            "area": annotation["area"],
            "score": score_of(annotation),
            "predicted_iou": annotation.get("predicted_iou"),
            "stability_score": annotation.get("stability_score"),
            "rle": annotation["segmentation"]["counts"],
        }

"""Exports pictures' masks into the formats of other programs."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from samtrt.errors import InputError
from samtrt.formats.annotated import WRITTEN_BY, AnnotatedPicture, begins_as_ours
from samtrt.formats.coco import write_coco, write_coco_polygons
from samtrt.formats.cvat import write_cvat
from samtrt.formats.geojson import write_geojson
from samtrt.formats.label_studio import write_label_studio
from samtrt.formats.labels import write_labels
from samtrt.formats.names import WITH_POLYGONS
from samtrt.formats.parquet import is_our_parquet, require_pyarrow, write_parquet
from samtrt.formats.polygons import require_shapely
from samtrt.formats.webdataset import check_keys, write_webdataset
from samtrt.formats.yolo import check_names, write_yolo
from samtrt.masks.coco import CATEGORIES
from samtrt.pictures.reading import read_png_texts

Pictures = Iterable[AnnotatedPicture]

# Format → the file of all pictures; the others have one a picture, with this added to its name.
_OF_ALL = {
    "coco": "coco.json",
    "coco-polygons": "coco-polygons.json",
    "yolo": "yolo/data.yaml",
    "cvat": "cvat.xml",
    "label-studio": "label-studio.json",
    "parquet": "masks.parquet",
    "webdataset": "masks.tar",
}
_A_PICTURE = {"geojson": ".geojson", "labels": ".labels.png"}


def output_of(kind: str, output_dir: Path, name: Path | None = None) -> Path:
    """The file that a format writes of all pictures, or of the one of that name.

    Without a name it is the output folder, where a format has a file a picture.
    """
    if kind in _OF_ALL:
        return output_dir / _OF_ALL[kind]
    return output_dir / f"{name}{_A_PICTURE[kind]}" if name else output_dir


def check_exports(
    kinds: Collection[str],
    output_dir: Path,
    names: Collection[Path],
    look: Callable[[Path], IO[bytes] | None] | None = None,
) -> None:
    """Refuses, before anything is computed, what could not be exported in the end.

    Args:
        names: the pictures, as the data sets shall call them.
        look: opens a file of that name below ``output_dir``, which is not on the disk then; None
            where there is none, an ``OSError`` where it is none.

    Raises:
        InputError: a file is there that was not written here, or two pictures would share one.
        SamtrtError: a library that a format needs is not installed.
    """
    if any(kind in WITH_POLYGONS for kind in kinds):
        require_shapely()
    if "yolo" in kinds:
        check_names(names)
    if "parquet" in kinds:
        require_pyarrow()
    if "webdataset" in kinds:
        check_keys(names)
    for kind in kinds:
        for name in [None] if kind in _OF_ALL else names:
            file = output_of(kind, Path(), name)
            if not _is_free(file, look or partial(_look, output_dir)):
                raise InputError(
                    f"{output_dir / file} is there, and no earlier run has written it; "
                    "move it away, or give another output folder"
                )


def export(
    kind: str,
    output_dir: Path,
    pictures: Pictures,
    tolerance: float,
    categories: Sequence[dict[str, Any]] = CATEGORIES,
) -> None:
    """Writes one format's files, each whole or not at all.

    Args:
        kind: one of ``EXPORTS``.
        pictures: read one at a time.
        tolerance: of polygons, see ``outline``.
        categories: COCO's, of all pictures.

    Raises:
        SamtrtError: a file cannot be written.
    """
    writers: dict[str, Callable[[], None]] = {
        "coco": lambda: write_coco(file, pictures, categories),
        "coco-polygons": lambda: write_coco_polygons(file, pictures, tolerance, categories),
        "yolo": lambda: write_yolo(file.parent, pictures, tolerance, categories),
        "cvat": lambda: write_cvat(file, pictures, categories),
        "label-studio": lambda: write_label_studio(file, pictures),
        "parquet": lambda: write_parquet(file, pictures),
        "webdataset": lambda: write_webdataset(file, pictures),
    }
    file = output_of(kind, output_dir)
    if kind in writers:
        writers[kind]()
        return
    for picture in pictures:
        file = output_of(kind, output_dir, picture.name)
        if kind == "geojson":
            write_geojson(file, picture, tolerance)
        else:
            write_labels(file, picture)


def _look(folder: Path, name: Path) -> IO[bytes] | None:
    path = folder / name
    return path.open("rb") if path.exists() or path.is_symlink() else None


def _is_free(name: Path, look: Callable[[Path], IO[bytes] | None]) -> bool:
    """Whether a file may be written: none is there, or one that was written here."""
    try:
        file = look(name)
        if file is None:
            return True
        with file:
            if name.suffix == ".png":
                return WRITTEN_BY in read_png_texts(file)
            if name.suffix == ".parquet":
                return is_our_parquet(file)
            return begins_as_ours(file)
    except OSError:  # a folder, say
        return False

"""Masks as a WebDataset's shard: a tar with a picture's files one after the other."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from samtrt.errors import InputError
from samtrt.files import json_bytes, replacing
from samtrt.formats.annotated import WRITTEN_BY, AnnotatedPicture
from samtrt.formats.labels import label_png


def key_of(name: Path) -> str:
    """A picture's key: its name without suffix. WebDataset's keys end at the first dot."""
    return name.with_suffix("").as_posix().replace(".", "_")


def check_keys(names: Iterable[Path]) -> None:
    """Refuses pictures that would share a key.

    Raises:
        InputError: there are such.
    """
    seen: dict[str, Path] = {}
    for name in names:
        other = seen.setdefault(key_of(name), name)
        if other != name:
            raise InputError(
                f"{other} and {name} would share WebDataset's key {key_of(name)}; rename one of "
                "them"
            )


def write_webdataset(path: Path, pictures: Iterable[AnnotatedPicture]) -> None:
    """Writes ``KEY.json`` (COCO's data set of the one picture) and ``KEY.labels.png`` for each.

    Nothing in it depends on when or by whom it was written.

    Raises:
        InputError: a picture with more masks than a label image can number.
        SamtrtError: the file cannot be written.
    """
    with (
        replacing(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for picture in pictures:
            height, width = picture.size
            image = {"id": 1, "width": width, "height": height}
            dataset = {
                "images": [{**image, "file_name": picture.name.as_posix()}],
                "annotations": picture.annotations,
                "categories": list(picture.categories),
            }
            files = {"json": json_bytes(dataset), "labels.png": label_png(picture)}
            for end, content in files.items():
                member = tarfile.TarInfo(f"{key_of(picture.name)}.{end}")
                member.size = len(content)
                member.uname = WRITTEN_BY  # within the first bytes, by which it is known again
                tar.addfile(member, io.BytesIO(content))

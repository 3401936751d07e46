"""Where a picture's content lies: a file, an object in a store, a tar's member, a Parquet row."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from samtrt.errors import InputError, SamtrtError
from samtrt.files import sha256_of_file
from samtrt.formats.parquet import require_pyarrow
from samtrt.hints import install
from samtrt.jobs.merging import Window
from samtrt.pictures.rasters import Reading, read_part
from samtrt.pictures.reading import MAX_FILE_BYTES, read_file
from samtrt.pictures.sources import PictureSource, read_url

# A client that finds no credentials says so here, and its error says it again.
logging.getLogger("aiobotocore").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Remote:
    """An object in a store that fsspec knows (``s3://``, ``gs://``, ``az://``), or on the web."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Member:
    """A file in a tar without compression: ``size`` bytes from ``offset`` on."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


@dataclass(frozen=True)
class Row:
    """A row of a Parquet file's row group, whose ``column`` has a picture's bytes."""

    file: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row} of group {self.group}"


@dataclass(frozen=True)
class Part:
    """A window of a picture that is not read as a whole."""

    source: Path | Remote
    window: Window
    reading: Reading

    def __str__(self) -> str:
        window = self.window
        return f"{self.source}, {window.width}×{window.height} pixels at {window.x}, {window.y}"


Place = Path | Remote | Member | Row | Part


def is_url(text: str) -> bool:
    """Whether a source names an object in a store or on the web, and no file."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.isascii() and scheme.replace("+", "").isalnum()


def raster_source(place: Path | Remote) -> tuple[str, Any]:
    """What ``pictures.rasters`` takes of a place: a path, and fsspec's file system of a store.

    Raises:
        InputError: it lies on the web.
        SamtrtError: fsspec, or its part for that store, is not installed.
    """
    if isinstance(place, Path):
        return str(place), None
    if PictureSource(place.url).is_url:
        raise InputError(f"{place} is on the web, which is not read by windows; download it first")
    with told(place.url):
        files, path = require_fsspec().core.url_to_fs(place.url)
        return path, files


def read_part_of(part: Part) -> npt.NDArray[np.uint8]:
    """A window's pixels, [H, W, 3] uint8 RGB.

    Raises:
        InputError, SamtrtError: as ``pictures.rasters.read_part``.
    """
    source, files = raster_source(part.source)
    return read_part(source, part.window.box, part.reading, files)


def digest_of(place: Path | Remote) -> str:
    """The SHA-256 of a picture's content, read in chunks.

    Raises:
        InputError: it is missing or cannot be read.
    """
    with opened(str(place)) as file:
        return sha256_of_file(file)  # type: ignore[arg-type]


def read_place(place: Path | Remote | Member | Row) -> bytes:
    """A picture's content.

    Raises:
        InputError: it is missing, unreadable or too large.
        SamtrtError: a library that it needs is not installed.
    """
    if isinstance(place, Path):
        return read_file(place)
    if isinstance(place, Remote):
        if PictureSource(place.url).is_url:
            return read_url(place.url)
        with opened(place.url) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    elif isinstance(place, Member):
        if place.size > MAX_FILE_BYTES:
            raise _too_large(place)
        with opened(place.shard) as file:
            file.seek(place.offset)
            content = file.read(place.size)
        if len(content) < place.size:
            raise InputError(f"{place.shard} was cut off meanwhile; run the command again")
    else:
        content = _row_group(place.file, place.group, place.column)[place.row].as_py()
        if not isinstance(content, bytes):
            raise InputError(f"{place} holds no bytes; expected a picture's content")
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(place)
    return content


@contextmanager
def opened(source: str) -> Iterator[IO[bytes]]:
    """A file, or an object of a store, to be read here and there.

    Raises:
        InputError: it is missing or cannot be read.
        SamtrtError: fsspec, or its part for that store, is not installed.
    """
    with told(source):
        if is_url(source):
            with require_fsspec().open(source, "rb") as file:
                yield file
        else:
            with Path(source).open("rb") as file:
                yield file


@contextmanager
def told(source: str) -> Iterator[None]:
    """Tells what goes wrong with a store in one line; each client fails in its own way.

    Raises:
        InputError, SamtrtError: see ``opened``.
    """
    try:
        yield
    except SamtrtError:
        raise
    except ImportError as error:
        raise SamtrtError(
            f"{source} needs a client that is not installed ({error}); run `{install('cloud')}`"
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"nothing is at {source}; check the address") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {source}: {reason}; check address and access") from error


def column_of(table: Any, column: str) -> Any:
    """A column of a table of pyarrow's, or a field in one: ``image.bytes``, as Hugging Face's data
    sets have pictures."""
    first, *inner = column.split(".")
    array = table[first].combine_chunks()
    for name in inner:
        array = array.field(name)
    return array


def require_fsspec() -> Any:
    """fsspec, or one line on how to get it.

    Raises:
        SamtrtError: it is not installed.
    """
    try:
        import fsspec
    except ImportError as error:
        raise SamtrtError(
            f"pictures in stores need fsspec, which is not installed; run `{install('cloud')}`"
        ) from error
    return fsspec


@lru_cache(maxsize=1)
def _row_group(file: str, group: int, column: str) -> Any:
    """A row group's column; the rows of one are read one after the other
    (``Sources.in_reading_order``)."""
    parquet = require_pyarrow().parquet
    with opened(file) as source:
        table = parquet.ParquetFile(source).read_row_group(group, columns=[column])
    return column_of(table, column)


def _too_large(place: Place) -> InputError:
    return InputError(
        f"{place} is too large for a picture; at most {MAX_FILE_BYTES >> 20} MiB are read"
    )

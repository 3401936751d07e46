"""Which pictures a run works on: folders, files, patterns, lists, stores, tars and Parquet files,
and what lies about beside them."""

import glob
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from samtrt.errors import InputError
from samtrt.formats.annotated import is_ours
from samtrt.formats.parquet import require_pyarrow
from samtrt.jobs.places import (
    Member,
    Place,
    Remote,
    Row,
    column_of,
    is_url,
    opened,
    require_fsspec,
    told,
)
from samtrt.pictures.reading import FORMATS, HEIC_SUFFIXES, read_png_texts
from samtrt.pictures.sources import PictureSource

MARK = "samtrt"  # the keyword in a PNG, and the key in a JSON, that an earlier run has written

# Columns of a Parquet file: pictures' bytes, and their names or paths; the first that is there.
_BYTES = ("image.bytes", "image_bytes", "bytes", "image", "jpg", "png", "content")
_KEYS = ("path", "file_name", "filename", "image_path", "url", "__key__", "key")

_HIDDEN = "hidden"
_DEAD_LINK = "link to nothing"
_SEEN_LINK = "link to a folder that is seen anyway"
_OUTPUT = "written by an earlier run"
_NO_FILE = "no file"


@dataclass
class Sources:
    """The pictures of a run, and what is none.

    Attributes:
        pictures: name in the outputs → where it lies; in order of the names.
        ignored: what was passed over below a folder → why, in a word or two.
        unreadable: folders that cannot be looked into → why.
    """

    pictures: dict[Path, Place] = field(default_factory=dict)
    ignored: dict[Path, str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def in_reading_order(self) -> Iterator[tuple[Path, Place]]:
        """The pictures in order of their names, but those of one row group, which is read as a
        whole, together."""
        groups: dict[tuple[str, int], list[tuple[Path, Place]]] = defaultdict(list)
        for name, place in self.pictures.items():
            if isinstance(place, Row):
                groups[place.file, place.group].append((name, place))
        for name, place in self.pictures.items():
            if isinstance(place, Row):
                yield from groups.pop((place.file, place.group), ())
            else:
                yield name, place


def find_sources(
    sources: Sequence[str | os.PathLike[str]],
    output_dir: Path | str | None = None,
    column: str | None = None,
) -> Sources:
    """The pictures that folders, files, patterns, lists, stores, tars and Parquet files name.

    Below a folder every file with a picture's suffix is one, and is named relative to it; links
    are followed, and a folder that is linked twice is seen once. Hidden files and folders,
    ``output_dir`` where it lies inside, and what earlier runs have written where it is the folder
    itself, are left out. A file that is named itself is one whatever its suffix is, and is called
    by its own name. A pattern (``photos/*.jpg``, ``**`` for any depth) stands for what it matches.

    The same goes for folders, objects and patterns of a store that fsspec knows
    (``s3://bucket/photos``), and for a picture on the web. These suffixes mean something else:

    - ``.txt``: a picture a line, called as it stands there; relative ones are below the list's
      folder. Lines that begin with ``#`` and empty ones are passed over.
    - ``.tar``: a WebDataset's shard; its pictures are called SHARD/NAME.
    - ``.parquet``: its rows have pictures' bytes or paths in a column; they are called
      FILE/NAME by a column ``path``, ``file_name`` or ``__key__`` beside the bytes, or by number.

    Args:
        column: of Parquet files, where there is more than one that may be meant; ``image.bytes``
            for a field.

    Raises:
        InputError: a source that is not there, no pictures in any, or two of one name.
        SamtrtError: a library that a source needs is not installed.
    """
    found = Sources()
    seen: set[Place] = set()
    for source in sources:
        for name, place in _pictures_of(source, output_dir, column, found):
            same = place.absolute() if isinstance(place, Path) else place
            if same in seen:
                continue
            seen.add(same)
            if (other := found.pictures.get(name)) is not None:
                raise InputError(
                    f"{other} and {place} would both be called {name}; give the folder that they "
                    "have in common, or an output folder to each"
                )
            found.pictures[name] = place
    if not found.pictures and not found.unreadable:
        others = f" ({counted(found.ignored)})" if found.ignored else ""
        where = ", ".join(map(str, sources))
        raise InputError(
            f"no pictures in {where}{others}; expected files such as .jpg, .png or .webp"
        )
    found.pictures = dict(sorted(found.pictures.items()))
    return found


def _pictures_of(
    source: str | os.PathLike[str],
    output_dir: Path | str | None,
    column: str | None,
    found: Sources,
) -> Iterator[tuple[Path, Place]]:
    """Names and places of the pictures of one source."""
    text = os.fspath(source)
    if is_url(text):
        for url, name in _objects(text, output_dir, found):
            yield from _of_file(url, name, column, found)
        return
    for path in _expanded(source):
        if path.is_dir():
            yield from _below(path, output_dir if isinstance(output_dir, Path) else None, found)
        elif path.suffix.lower() == ".txt":
            yield from _listed(path)
        else:
            yield from _of_file(str(path), Path(path.name), column, found)


def _of_file(
    file: str, name: Path, column: str | None, found: Sources
) -> Iterator[tuple[Path, Place]]:
    """The pictures of a file or an object: those inside it, or itself."""
    suffix = name.suffix.lower()
    whole = file if is_url(file) else str(Path(file).absolute())
    if suffix == ".tar":
        yield from _members(whole, name, found)
    elif suffix == ".parquet":
        yield from _rows(whole, name, column, found)
    else:
        yield name, Remote(file) if is_url(file) else Path(file)


def _listed(path: Path) -> Iterator[tuple[Path, Place]]:
    """The pictures that a list names, a line each."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the list {path}: {error}; expected a name a line") from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            yield _named(line, path.parent, f"{path}: line {number}")


def _named(text: str, folder: Path, where: str) -> tuple[Path, Place]:
    """Name and place of a picture that a list or a table names; relative to a folder."""
    if is_url(text):
        return _safe(text.partition("://")[2].partition("?")[0], where), Remote(text)
    return _safe(text, where), folder / text


def _objects(url: str, output_dir: Path | str | None, found: Sources) -> list[tuple[str, Path]]:
    """Addresses and names of what a store has at a place, below it, or by a pattern; without what
    lies in the output's place."""
    if PictureSource(url).is_url:
        return [(url, Path(PurePosixPath(unquote(urlsplit(url).path)).name or "picture"))]
    with told(url):
        files, path = require_fsspec().core.url_to_fs(url)
        if glob.has_magic(path):
            before = re.split(r"[*?\[]", path)[0]
            root, entries = before.rpartition("/")[0], files.glob(path)
        elif files.isdir(path):
            root, entries = path, files.find(path)
        else:
            root, entries = path.rpartition("/")[0], [path]
        suffixes = _suffixes() | {".tar", ".parquet"}
        named = []
        output = output_dir.rstrip("/") if isinstance(output_dir, str) else None
        if output == url.rstrip("/"):
            raise InputError(
                f"{url} is the source and the output, and pictures with masks painted on them "
                "could not be told from others there; give the output a place of its own"
            )
        for entry in sorted(entries):
            if output and files.unstrip_protocol(entry).startswith(f"{output}/"):
                continue
            name = Path(entry.removeprefix(f"{root.rstrip('/')}/"))
            if any(part.startswith(".") for part in name.parts):
                found.ignored[name] = _HIDDEN
            elif len(entries) > 1 and name.suffix.lower() not in suffixes:
                found.ignored[name] = name.suffix.lower() or "without suffix"
            else:
                named.append((files.unstrip_protocol(entry), name))
        return named


def _members(shard: str, name: Path, found: Sources) -> Iterator[tuple[Path, Place]]:
    """The pictures of a tar."""
    suffixes = _suffixes()
    with opened(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = [one for one in tar if one.isfile()]
        except tarfile.TarError as error:
            raise InputError(
                f"{shard} is no tar without compression ({error}); expected a WebDataset's shard"
            ) from error
    for member in members:
        called = _safe(f"{name.with_suffix('')}/{member.name}", shard)
        if (suffix := called.suffix.lower()) not in suffixes:
            found.ignored[called] = suffix or "without suffix"
        else:
            yield called, Member(shard, member.name, member.offset_data, member.size)


def _rows(
    file: str, name: Path, column: str | None, found: Sources
) -> Iterator[tuple[Path, Place]]:
    """The pictures of a Parquet file's rows."""
    parquet = require_pyarrow().parquet
    folder = name.with_suffix("")
    with opened(file) as source:
        table = parquet.ParquetFile(source)
        paths = {leaf.path: str(leaf.physical_type) for leaf in table.schema}
        chosen = _column(file, paths, column)
        keys = next(
            (key for key in (*_KEYS, *_inner(chosen)) if key in paths and key != chosen), ""
        )
        is_path = not _is_bytes(table, chosen)
        named_by = chosen if is_path else keys
        number = 0
        for group in range(table.num_row_groups):
            names: list[Any] = [None] * table.metadata.row_group(group).num_rows
            if named_by:
                few = table.read_row_group(group, columns=[named_by])
                names = column_of(few, named_by).to_pylist()
            for row, key in enumerate(names):
                number += 1
                where = f"{file}: row {number}"
                if is_path:
                    if not isinstance(key, str):
                        found.unreadable[folder / f"{number:08}"] = f"{where} names no picture"
                        continue
                    called, place = _named(key, Path(file).parent, where)
                    yield folder / called, place
                    continue
                has_name = isinstance(key, str) and key
                called = _safe(key, where) if has_name else Path(f"{number:08}")
                yield folder / called, Row(file, group, row, chosen)


def _column(file: str, columns: Mapping[str, str], column: str | None) -> str:
    """The column that has the pictures."""
    if column is not None:
        if column in columns:
            return column
    else:
        for fitting in (
            [name for name in _BYTES if name in columns],
            [name for name in _KEYS if columns.get(name) == "BYTE_ARRAY"],
        ):
            if fitting:
                return fitting[0]
    wanted = f"no column {column}" if column is not None else "no column that holds pictures"
    raise InputError(
        f"{file} has {wanted}, only {', '.join(columns)}; name the one with the bytes or paths "
        "by --column"
    )


def _is_bytes(table: Any, column: str) -> bool:
    """Whether a column holds bytes, and not texts."""
    kind = table.schema_arrow.field(column.partition(".")[0]).type
    for name in column.split(".")[1:]:
        kind = kind.field(name).type
    return "binary" in str(kind)


def _inner(column: str) -> list[str]:
    """The path beside a picture's bytes, as Hugging Face's data sets have it."""
    return [f"{column.rpartition('.')[0]}.path"] if "." in column else []


def _safe(text: str, where: str) -> Path:
    """A name from a list, a tar or a table, as a path below the output folder.

    Raises:
        InputError: it would lie outside.
    """
    parts = [part for part in PurePosixPath(text.replace(os.sep, "/")).parts if part not in "/."]
    if not parts or ".." in parts:
        raise InputError(f"{where}: {text!r} is no name below a folder; rename it")
    return Path(*parts)


def counted(ignored: dict[Path, str]) -> str:
    """How many there are of each reason, the most frequent first: ``3 .txt, 1 hidden``."""
    reasons: dict[str, int] = {}
    for reason in ignored.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def is_painting(file: Path | IO[bytes]) -> bool:
    """Whether this is a PNG that an earlier run has written."""
    return MARK in read_png_texts(file)


def _expanded(source: str | os.PathLike[str]) -> Iterator[Path]:
    path = Path(source)
    if path.exists() or path.is_symlink():
        yield path
    elif glob.has_magic(text := os.fspath(source)):
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (as shells match)
        if not matches:
            raise InputError(f"nothing matches {text}; give folders, pictures or patterns")
        # What lies in a folder that matches as well is seen with the folder.
        yield from map(Path, matches)
    else:
        raise InputError(
            f"no folder at {path}, and no picture; give folders, pictures or patterns such as "
            "'photos/*.jpg'"
        )


def _below(folder: Path, output_dir: Path | None, found: Sources) -> list[tuple[Path, Path]]:
    """Names and files of the pictures below a folder; puts down what is none."""
    output = output_dir.resolve() if output_dir is not None else None
    is_output = output == folder.resolve()
    suffixes = _suffixes()
    pictures = []
    for path in _files(folder, None if is_output else output, found):
        name = path.relative_to(folder)
        if (reason := _reason(path, suffixes, is_output)) is not None:
            found.ignored[name] = reason
        else:
            pictures.append((name, path))
    return sorted(pictures)


def _files(folder: Path, without: Path | None, found: Sources) -> Iterator[Path]:
    """Everything below a folder but folders; those that are links come after all others."""
    seen: set[Path] = set()
    links = [folder]
    while links:
        start = links.pop(0)
        if start.resolve() in seen:
            found.ignored[start.relative_to(folder)] = _SEEN_LINK
            continue
        for place, folders, files in os.walk(start, onerror=_put_down(folder, found)):
            here = Path(place)
            seen.add(here.resolve())
            for name in sorted(folders):
                path = here / name
                if name.startswith("."):
                    found.ignored[path.relative_to(folder)] = _HIDDEN
                elif path.is_symlink() and path.resolve() != without:
                    links.append(path)
            folders[:] = [
                name
                for name in sorted(folders)
                if not name.startswith(".")
                and not (here / name).is_symlink()
                and (resolved := (here / name).resolve()) != without
                and resolved not in seen
            ]
            yield from (here / name for name in files)


def _put_down(folder: Path, found: Sources):  # type: ignore[no-untyped-def]  # os.walk's own
    def put_down(error: OSError) -> None:
        place = Path(error.filename or folder)
        reason = f"cannot read {place}: {error.strerror}; give read permission"
        found.unreadable[place.relative_to(folder)] = reason

    return put_down


def _reason(path: Path, suffixes: frozenset[str], is_output: bool) -> str | None:
    """Why a file below a folder is no picture of the run; None where it is one."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return _HIDDEN
    if is_output and _is_output(path):
        return _OUTPUT
    if suffix not in suffixes:
        return suffix or "without suffix"
    try:
        if path.is_symlink() and not path.exists():
            return _DEAD_LINK
        return None if path.is_file() else _NO_FILE
    except OSError:
        return None  # reading it will say why it cannot be read


def _is_output(path: Path) -> bool:
    """Whether an earlier run has written this file beside the pictures."""
    if path.suffix == ".png":
        return is_painting(path)
    if path.suffix in (".json", ".geojson", ".xml", ".yaml"):
        return path.with_suffix("").is_file() or is_ours(path)
    return False


def _suffixes() -> frozenset[str]:
    """Of the kinds of pictures that are read."""
    known = Image.registered_extensions().items()
    return frozenset((*(suffix for suffix, kind in known if kind in FORMATS), *HEIC_SUFFIXES))

"""Which pictures a run works on: folders, files and patterns, and what lies about beside them."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from samtrt.errors import InputError
from samtrt.formats.annotated import is_ours
from samtrt.pictures.reading import FORMATS, HEIC_SUFFIXES, read_png_texts

MARK = "samtrt"  # the keyword in a PNG, and the key in a JSON, that an earlier run has written

_HIDDEN = "hidden"
_DEAD_LINK = "link to nothing"
_SEEN_LINK = "link to a folder that is seen anyway"
_OUTPUT = "written by an earlier run"
_NO_FILE = "no file"


@dataclass
class Sources:
    """The pictures of a run, and what is none.

    Attributes:
        pictures: name in the outputs → file; in order of the names.
        ignored: what was passed over below a folder → why, in a word or two.
        unreadable: folders that cannot be looked into → why.
    """

    pictures: dict[Path, Path] = field(default_factory=dict)
    ignored: dict[Path, str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)


def find_sources(
    sources: Sequence[str | os.PathLike[str]], output_dir: Path | None = None
) -> Sources:
    """The pictures that folders, files and patterns name.

    Below a folder every file with a picture's suffix is one, and is named relative to it; links
    are followed, and a folder that is linked twice is seen once. Hidden files and folders,
    ``output_dir`` where it lies inside, and what earlier runs have written where it is the folder
    itself, are left out. A file that is named itself is one whatever its suffix is, and is called
    by its own name. A pattern (``photos/*.jpg``, ``**`` for any depth) stands for what it matches.

    Raises:
        InputError: a source that is not there, no pictures in any, or two of one name.
    """
    found = Sources()
    seen: set[Path] = set()
    for path in _expanded(sources):
        named = _below(path, output_dir, found) if path.is_dir() else [(Path(path.name), path)]
        for name, file in named:
            if (place := file.absolute()) in seen:
                continue
            seen.add(place)
            if (other := found.pictures.get(name)) is not None:
                raise InputError(
                    f"{other} and {file} would both be called {name}; give the folder that they "
                    "have in common, or an output folder to each"
                )
            found.pictures[name] = file
    if not found.pictures and not found.unreadable:
        others = f" ({counted(found.ignored)})" if found.ignored else ""
        where = ", ".join(map(str, sources))
        raise InputError(
            f"no pictures in {where}{others}; expected files such as .jpg, .png or .webp"
        )
    found.pictures = dict(sorted(found.pictures.items()))
    return found


def counted(ignored: dict[Path, str]) -> str:
    """How many there are of each reason, the most frequent first: ``3 .txt, 1 hidden``."""
    reasons: dict[str, int] = {}
    for reason in ignored.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def is_painting(path: Path) -> bool:
    """Whether this is a PNG that an earlier run has written."""
    return MARK in read_png_texts(path)


def _expanded(sources: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    for source in sources:
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

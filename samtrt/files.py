"""Files that are either whole or absent, whatever is killed and whenever the disk is full.

A new file is written beside the old one, flushed to the disk, and then takes its name. The one
beside it has a fixed, hidden name, so that what a killed run left is taken over by the next, and
is locked while it is written, so that two runs never write into the same one.
"""

import errno
import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from io import BufferedIOBase, FileIO, RawIOBase
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from samtrt.errors import InputError, SamtrtError

try:
    import fcntl
except ImportError:  # Windows, which neither locks this way nor moves or removes open files
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SAMTRT_CACHE_DIR"

_MAX_NAME_BYTES = 255  # of a file's name on every common file system
_MAX_WRITERS = 64  # of one file at a time
_LOCK_FILE = ".samtrt-lock"
_JOB = "job"  # what a folder's job is called where a second one is refused
_CHUNK = 1 << 18  # bytes that are hashed at once
# What a file system without locks answers (some network drives).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES)


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$SAMTRT_CACHE_DIR``, or ``samtrt`` in the user's
    cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("samtrt", appauthor=False)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which takes its name when the block succeeds.

    The folder is created where it is missing. When the block fails, nothing is left behind and
    an earlier file of that name stays as it was; when the process is killed, the earlier or the
    new file is there, whole. Writers of one file at one time do not disturb each other: the file
    of the last one stays.

    Raises:
        SamtrtError: the folder or the file cannot be written (permissions, disk full, …).
    """
    target = Path(path)
    with writing(target), _claimed(target) as claim:
        yield claim.path
        _take_name(claim, target)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Tells an ``OSError`` of the block as "cannot write ``target``", for a user to read.

    Raises:
        SamtrtError: in place of the ``OSError``. One that names a file elsewhere, or that is not
            the operating system's (a shared library is missing), goes through: it is not the
            write's own.
    """
    try:
        yield
    except OSError as error:
        is_elsewhere = isinstance(error.filename, str) and not _is_beside(
            Path(error.filename), target
        )
        if is_elsewhere or error.errno is None:
            raise
        reason = error.strerror or str(error)
        raise SamtrtError(
            f"cannot write {target}: {reason}; give a folder that can be written and has room"
        ) from error


def check_writable(folder: Path) -> None:
    """Refuses a folder in which nothing can be written, before anything is computed for it.

    Where it is missing, what counts is the nearest of its parents that is there.

    Raises:
        InputError: no write permission, a read-only file system, or a file in its place.
    """
    place = folder.absolute()
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "no write permission" if there.is_dir() else "not a folder"
        raise InputError(f"cannot write into {folder}: {there}: {reason}; give another folder")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON in UTF-8, whole or not at all.

    NaN and infinity, which JSON has no word for, become null. A name whose bytes are no UTF-8
    (``os.fsdecode``) is escaped, so that reading gives the same string again.
    """
    write_bytes(path, json_bytes(value))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def json_bytes(value: Any) -> bytes:
    """What ``write_json`` writes."""
    text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def without_nan(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity, at any depth, become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


@dataclass
class Sealing:
    """A data file that is being written, and what its record will say.

    Attributes:
        path: the file to fill, which is there and empty.
        record: set before the block ends.
    """

    path: Path
    record: dict[str, Any] = field(init=False)


@contextmanager
def sealing(data: Path, record: Path, is_sealed: Callable[[Path], bool]) -> Iterator[Sealing]:
    """Writes a data file and the JSON record that names its content, in one step.

    The block fills the file and sets the record; where it fails, an earlier pair stays.

    Replacing the record is that step. Before it the earlier pair is whole; after it the new one
    is, although the data may not have its final name yet: readers look for it under both of
    ``sealed_names``.

    Args:
        data, record: the two files, of one folder.
        is_sealed: whether that data file is the one that the record on the disk names.

    Raises:
        SamtrtError: the folder cannot be written, or another process is writing it.
    """
    final, pending = sealed_names(data)
    if pending.exists():
        with _claimed(data, alone=True) as claim, writing(data):
            if is_sealed(claim.path):  # killed between the step and the final name
                _take_name(claim, final)
    with _claimed(data, alone=True) as claim:
        with writing(data):
            claim.path.write_bytes(b"")
        made = Sealing(claim.path)
        yield made
        with writing(data):
            _flush(claim.path)
        claim.keep = True  # an interrupt may come when the record names it already
        try:
            write_json(record, made.record)
        except SamtrtError:
            claim.keep = record.is_file() and record.read_bytes() == json_bytes(made.record)
            raise
        with writing(data):
            _take_name(claim, final)


def sealed_names(data: Path) -> tuple[Path, Path]:
    """Where a pair's data may lie: under its own name, or as a killed run left it."""
    return data, _temporary_name(data, 0)


def read_sealed(data: Path, record: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of a pair's data, wherever a writer has it at this moment.

    Args:
        data, record: the two files, as ``sealing`` takes them.
        read: reads the record and the data file that it is given; raises a ``SamtrtError`` where
            one cannot be used or the two do not belong together.

    Raises:
        SamtrtError: what ``read`` says of the data under their own name.
    """
    final, pending = sealed_names(data)
    while True:
        seen = _state(record), _state(final)
        try:
            return read(final)
        except SamtrtError:
            if pending.exists():
                with suppress(SamtrtError):
                    return read(pending)
            if seen == (_state(record), _state(final)):
                raise
        # A writer was at its last steps meanwhile.


@contextmanager
def working_alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time work in a folder, which is created; the others wait.

    Raises:
        SamtrtError: the folder cannot be written.
    """
    path = folder / _LOCK_FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "r+", opener=_create)
    with file:
        if not _try_lock(file):
            logger.info("waiting for another process that works in %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """Lets one process at a time fill a folder, which is created; a second one is refused.

    Nothing of the lock is left behind but by a killed process, and the next takes that over; nor is
    a folder that was made here and in which nothing was written.

    Raises:
        SamtrtError: another process has it, or the folder cannot be written.
    """
    is_new = not folder.exists()
    try:
        with _claimed(folder / _JOB, alone=True, shown=folder):
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before anything is computed for it.

    Raises:
        InputError: the name is a folder's, or lies where nothing can be written.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    check_writable(path.parent)


def read_whole(path: Path) -> bytearray:
    """A file's content in memory of its own, which no later change of the file reaches.

    Raises:
        OSError: it cannot be read, or ends while it is read.
        MemoryError: it does not fit into memory.
    """
    with path.open("rb", buffering=0) as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        rest = memoryview(content)
        while rest:
            count = file.readinto(rest)
            if not count:
                raise OSError(errno.EIO, "the file became shorter while it was read", str(path))
            rest = rest[count:]
    return content


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal, read in chunks."""
    with Path(path).open("rb", buffering=0) as file:
        return sha256_of_file(file)


def sha256_of_file(file: RawIOBase | BufferedIOBase) -> str:
    """The SHA-256 of what an open file holds from where it stands, in hexadecimal."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_CHUNK))
    while count := file.readinto(chunk):
        digest.update(chunk[:count])
    return digest.hexdigest()


@dataclass
class _Claim:
    """A temporary file that no other writer uses.

    Attributes:
        path: its name.
        file: holds the lock until it is closed, or forgotten.
        keep: whether it stays when the block fails.
    """

    path: Path
    file: FileIO
    keep: bool = False


@contextmanager
def _claimed(target: Path, alone: bool = False, shown: Path | None = None) -> Iterator[_Claim]:
    """A temporary file for a writer of ``target``, which errors call ``shown``; ``alone`` refuses
    a second writer."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        claim = _first_free(target, 1 if alone else _MAX_WRITERS, shown or target)
    try:
        yield claim
    finally:
        is_left = not claim.keep and _is_at(claim.file, claim.path)
        if fcntl is None:
            claim.file.close()
        if is_left:
            claim.path.unlink()
        claim.file.close()


def _first_free(target: Path, writers: int, shown: Path) -> _Claim:
    for number in range(writers):
        path = _temporary_name(target, number)
        if (file := _lock(path)) is not None:
            if writers > 1:
                _remove_left(_temporary_name(target, number + 1))
            return _Claim(path, file)
    raise SamtrtError(
        f"another process is writing {shown}; wait until it has ended, or write elsewhere"
    )


def _lock(path: Path) -> FileIO | None:
    """Opens and locks the file of that name; None where another writer has it."""
    while True:
        try:
            file = FileIO(path, "r+", opener=_create)
        except PermissionError:
            if path.exists():  # another user's
                return None
            raise
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EEXIST, "something else is in its place", str(path))
        if not _try_lock(file):
            file.close()
            return None
        if _is_at(file, path):
            return file
        file.close()  # its writer has just ended and moved it away


def _create(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _try_lock(file: FileIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_of_no_locks()
    return True


@cache
def _warn_of_no_locks() -> None:
    logger.warning("this file system has no locks: let only one process write a file at a time")


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return not file.closed and os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _remove_left(path: Path) -> None:
    """Removes the file of a writer that was killed."""
    if path.exists() and (file := _lock(path)) is not None:
        path.unlink()
        file.close()


def _take_name(claim: _Claim, target: Path) -> None:
    _flush(claim.path)
    if fcntl is None:
        claim.file.close()
    claim.path.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(handle)


def _temporary_name(target: Path, number: int) -> Path:
    """Hidden, beside the target, of the same suffix (image writers choose their format by it)."""
    end = f".samtrt-new{f'-{number}' if number else ''}"
    name = f".{target.stem}{end}{target.suffix}"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
        name = f".{digest}{end}{target.suffix if len(target.suffix) < 8 else ''}"
    return target.with_name(name)


def _is_beside(path: Path, target: Path) -> bool:
    return path.parent == target.parent or path in target.parents

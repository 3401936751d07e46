"""Where a job's files go: a folder, or a place in a store (S3, Google's, Azure's).

A store has no names that are taken later and no locks. But an object is there as a whole once its
upload is complete, and not before; and one that must not be there yet is made by one job alone. So
each file is one upload, and a job's lock is an object that it goes on renewing.
"""

import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from samtrt.errors import InputError, SamtrtError
from samtrt.files import check_writable, claimed_folder, sha256_of_file, write_bytes
from samtrt.jobs.places import is_url, require_fsspec, told

# Stores in which an upload is one step.
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_LOCK = ".samtrt-job.json"
RENEWED_EVERY = 10.0  # seconds
LEFT_AFTER = 40.0  # seconds without renewal, after which a lock is a killed job's

_logger = logging.getLogger(__name__)


class FolderTarget:
    """A folder.

    Attributes:
        root: the folder; names are below it.
        is_far: whether a look at a file is a trip, so that several are better looked at at once.
    """

    is_far = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def shown(self, name: Path) -> str:
        """A file as messages call it."""
        return str(self.root / name)

    def check(self) -> None:
        """Refuses a place in which nothing can be written.

        Raises:
            InputError: it is one.
        """
        check_writable(self.root)

    def claimed(self) -> AbstractContextManager[None]:
        """For this job alone.

        Raises:
            SamtrtError: another job has it.
        """
        return claimed_folder(self.root)

    def look(self, name: Path) -> IO[bytes] | None:
        """A file, opened; None where nothing is there.

        Raises:
            OSError: it is no file, or cannot be read.
        """
        path = self.root / name
        return path.open("rb") if path.exists() or path.is_symlink() else None

    def make_room(self, name: Path) -> None:
        """Makes the folder that a file will lie in.

        Raises:
            SamtrtError: it cannot be made.
        """
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.exists()  # fails where the name cannot be, as one that is too long
        except OSError as error:
            reason = f"{error.strerror}; give another output folder"
            raise SamtrtError(f"cannot write {path}: {reason}") from error

    def write(self, name: Path, content: bytes) -> None:
        """Writes a file, whole or not at all.

        Raises:
            SamtrtError: it cannot be written.
        """
        write_bytes(self.root / name, content)

    def below(self, folder: Path) -> list[Path]:
        """The names of the files in a folder."""
        path = self.root / folder
        return [folder / one.name for one in path.iterdir()] if path.is_dir() else []

    def remove(self, names: list[Path], folder: Path) -> None:
        """Removes files, and their folder where it is empty then."""
        for name in names:
            (self.root / name).unlink()
        (self.root / folder).rmdir()

    @contextmanager
    def exporting(self) -> Iterator[Path]:
        """A folder to write further files into; they are there when the block ends."""
        yield self.root


class StoreTarget:
    """A place in a store.

    Args:
        url: as ``s3://bucket/masks``.

    Attributes:
        is_far: as ``FolderTarget.is_far``.

    Raises:
        InputError: a store in which an upload is more than a step, or no place in one.
        SamtrtError: fsspec, or its part for the store, is not installed.
    """

    is_far = True

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in _STORES or not rest.strip("/"):
            raise InputError(
                f"cannot write to {url}; expected a folder, or a place in a store such as "
                "s3://bucket/masks, gs:// or az://"
            )
        self.url = url.rstrip("/")
        self._scheme = scheme
        with told(url):
            self._files, self._path = require_fsspec().core.url_to_fs(self.url)
        self._names: set[str] | None = None
        self._lease = _Lease(self.url, self._read_lock, self._make_lock, self._remove_lock)

    def __str__(self) -> str:
        return self.url

    def shown(self, name: Path) -> str:
        """As ``FolderTarget.shown``."""
        return f"{self.url}/{name.as_posix()}" if name.parts else self.url

    def check(self) -> None:
        """As ``FolderTarget.check``."""
        self._listed()

    def claimed(self) -> AbstractContextManager[None]:
        """As ``FolderTarget.claimed``."""
        return self._lease.held()

    def look(self, name: Path) -> IO[bytes] | None:
        """As ``FolderTarget.look``."""
        if name.as_posix() not in self._listed():
            return None
        file: IO[bytes] = self._files.open(self._key(name), "rb")
        return file

    def make_room(self, name: Path) -> None:
        """Nothing: a store has no folders."""

    def write(self, name: Path, content: bytes) -> None:
        """As ``FolderTarget.write``; in one upload.

        Raises:
            SamtrtError: the store refuses it, or another job has taken the place over.
        """
        self._lease.check()
        try:
            self._files.pipe_file(self._key(name), content)
        except Exception as error:  # each client fails in its own way, after tries of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SamtrtError(
                f"cannot write {self.shown(name)}: {reason}; check address and access"
            ) from OSError(errno.EIO, reason)
        self._listed().add(name.as_posix())

    def below(self, folder: Path) -> list[Path]:
        """As ``FolderTarget.below``."""
        start = f"{folder.as_posix()}/"
        return [Path(name) for name in sorted(self._listed()) if name.startswith(start)]

    def remove(self, names: list[Path], folder: Path) -> None:
        """As ``FolderTarget.remove``."""
        self._lease.check()
        for name in names:
            self._files.rm_file(self._key(name))
            self._listed().discard(name.as_posix())

    @contextmanager
    def exporting(self) -> Iterator[Path]:
        """As ``FolderTarget.exporting``; they are written beside this process and uploaded."""
        with tempfile.TemporaryDirectory(prefix="samtrt-") as folder:
            yield Path(folder)
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    self.write(path.relative_to(folder), path.read_bytes())

    def _listed(self) -> set[str]:
        """The names of what is there; asked for once, and kept up to date from then on."""
        if self._names is None:
            with told(self.url):
                self._files.invalidate_cache()
                try:
                    found = self._files.find(self._path)
                except FileNotFoundError:
                    found = []
            start = f"{self._path}/"
            self._names = {key.removeprefix(start) for key in found if key.startswith(start)}
        return self._names

    def _key(self, name: Path) -> str:
        return f"{self._path}/{name.as_posix()}"

    def _read_lock(self) -> bytes | None:
        self._files.invalidate_cache()
        with told(self.url):
            try:
                content: bytes = self._files.cat_file(self._key(Path(_LOCK)))
            except FileNotFoundError:
                return None
            return content

    def _make_lock(self, content: bytes, is_new: bool) -> bool:
        """Whether it was made; one that has to be new is not where another is there."""
        options: dict[str, Any] = {}
        if is_new:
            is_azure = self._scheme in ("az", "abfs", "abfss")
            options = {"overwrite": False} if is_azure else {"mode": "create"}
        try:
            self._files.pipe_file(self._key(Path(_LOCK)), content, **options)
        except FileExistsError:
            return False
        except Exception as error:
            # s3fs tells a condition that was not met as an OSError of that text.
            if is_new and "pre-condition" in str(error).lower().replace(
                "precondition", "pre-condition"
            ):
                return False
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SamtrtError(
                f"cannot write into {self.url}: {reason}; check address and access"
            ) from error
        return True

    def _remove_lock(self) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(self._key(Path(_LOCK)))


Target = FolderTarget | StoreTarget


def target_of(place: str | os.PathLike[str]) -> Target:
    """The target of a path, or of an address in a store.

    Raises:
        InputError, SamtrtError: as ``StoreTarget``.
    """
    text = os.fspath(place)
    return StoreTarget(text) if is_url(text) else FolderTarget(Path(text))


def sha256_at(target: Target, name: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    file = target.look(name)
    if file is None:
        raise FileNotFoundError(target.shown(name))
    with file:
        return sha256_of_file(file)  # type: ignore[arg-type]


class _Lease:
    """A lock that is its owner's while it is renewed.

    Looking whose it is and renewing it are two steps. Where a job is taken over between them, its
    renewal takes the lock back, and the other job ends at its own next one: one of the two stays.

    Args:
        shown: the place, in messages.
        read: the lock's content; None where there is none.
        make: writes it; with True only where there is none, and says whether.
        remove: removes it.
    """

    def __init__(
        self,
        shown: str,
        read: Callable[[], bytes | None],
        make: Callable[[bytes, bool], bool],
        remove: Callable[[], None],
    ) -> None:
        self._shown = shown
        self._read, self._make, self._remove = read, make, remove
        self._job = uuid.uuid4().hex
        self._beat = 0
        self._ended = threading.Event()
        self._is_lost = False

    def check(self) -> None:
        """Refuses to go on where another job has taken over.

        Raises:
            SamtrtError: one has.
        """
        if self._is_lost:
            raise SamtrtError(
                f"another job has taken {self._shown} over, since this one stood still for "
                f"{LEFT_AFTER:g} s or more; run the command again when it has ended"
            ) from OSError(errno.EIO, "taken over")

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the block.

        Raises:
            SamtrtError: another job has it.
        """
        self._take()
        self._ended.clear()
        renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._ended.set()
            renewing.join()
            with suppress(Exception):  # it is left, and taken over by the next
                if self._is_ours(self._read()):
                    self._remove()

    def _take(self) -> None:
        if self._make(self._content(), True):
            return
        before, start = self._read(), time.monotonic()
        _logger.warning(
            "a job has been at work in %s; waiting for up to %g s whether it still is",
            self._shown, LEFT_AFTER,
        )  # fmt: skip
        while time.monotonic() - start < LEFT_AFTER:
            time.sleep(RENEWED_EVERY / 4)
            now = self._read()
            if now is None:
                break
            if now != before:
                raise self._refusal()
        else:
            self._remove()
        if not self._make(self._content(), True):
            raise self._refusal()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            try:
                if not self._is_ours(self._read()):
                    self._is_lost = True
                    return
                self._make(self._content(), False)
            except Exception as error:  # the store answers again, or writing fails as well
                _logger.warning("the lock of %s was not renewed: %s", self._shown, error)

    def _content(self) -> bytes:
        self._beat += 1
        told_of = {"job": self._job, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps({**told_of, "beat": self._beat}).encode()

    def _is_ours(self, content: bytes | None) -> bool:
        try:
            return bool(json.loads(content or b"")["job"] == self._job)
        except (ValueError, KeyError, TypeError):
            return False

    def _refusal(self) -> SamtrtError:
        return SamtrtError(
            f"another process is writing {self._shown}; wait until it has ended, or write elsewhere"
        )

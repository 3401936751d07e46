"""Machine code that was compiled before, kept where its user alone can write.

A file is the code and its SHA-256. What another user could have written is not run.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from functools import cache
from pathlib import Path

from samtrt.files import CACHE_VARIABLE, cache_folder

UNUSED_DAYS = 90  # after these a file goes

_DAY = 24 * 60 * 60
_DIGEST_BYTES = hashlib.sha256().digest_size
_SUFFIX = ".cubin"

logger = logging.getLogger(__name__)


def read_code(name: str) -> bytes | None:
    """The code kept under a name, as it was written; None where there is none that can be trusted.

    Whatever is wrong with a file or the folder is logged, once.
    """
    path = cache_folder() / f"{name}{_SUFFIX}"
    try:
        with path.open("rb") as file:
            own = os.fstat(file.fileno())
            for place, status in ((path.parent, path.parent.stat()), (path, own)):
                if fault := _fault(status):
                    _warn(f"{place} {fault}: the kernels in it are not run but compiled anew")
                    return None
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(f"{path} cannot be read ({error.strerror}): that kernel is compiled anew")
        return None
    code, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(code).digest() != digest:
        _warn(f"{path} is damaged: that kernel is compiled anew")
        return None
    if time.time() - own.st_mtime > _DAY:
        with contextlib.suppress(OSError):
            os.utime(path)  # in use
    return code


def keep_code(name: str, code: bytes) -> None:
    """Keeps code under a name, whole or not at all, and removes what was not used for long.

    A folder that is made is its user's alone, and so is the file, whatever the umask. Where it
    cannot be kept, that is logged, once.
    """
    folder = cache_folder()
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o700)
        handle, temporary_name = tempfile.mkstemp(prefix=".", suffix=_SUFFIX, dir=folder)
        temporary = Path(temporary_name)
        with os.fdopen(handle, "wb") as file:
            temporary.chmod(0o600)
            file.write(code + hashlib.sha256(code).digest())
        temporary.replace(folder / f"{name}{_SUFFIX}")
        _prune(folder)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _warn(
            f"kernels are compiled anew at each start, since {folder} cannot be written "
            f"({error.strerror}); set {CACHE_VARIABLE} to a folder that can"
        )


def _fault(status: os.stat_result) -> str | None:
    if not hasattr(os, "geteuid"):  # Windows, where neither number means anything
        return None
    if status.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    if status.st_mode & 0o022:
        return "can be written by other users (chmod go-w)"
    return None


def _prune(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * _DAY
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process was faster
            if path.lstat().st_mtime < oldest:
                path.unlink()


@cache
def _warn(message: str) -> None:
    logger.warning("%s", message)

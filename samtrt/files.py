"""Files that are either whole or absent."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samtrt.errors import SamtrtError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which takes its name when the block succeeds.

    The folder is created where it is missing. When the block fails, nothing is left behind and
    an earlier file of that name stays as it was.

    Raises:
        SamtrtError: the folder or the file cannot be written (permissions, disk full, …).
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: image and ONNX writers choose their format by it.
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SamtrtError(
            f"cannot write {target}: {reason}; give a folder that can be written and has room"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON in UTF-8, whole or not at all.

    NaN and infinity, which JSON has no word for, become null. A name whose bytes are no UTF-8
    (``os.fsdecode``) is escaped, so that reading gives the same string again.
    """
    text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


def without_nan(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity, at any depth, become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal, read in chunks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Which version of the kernels this is, told by their source."""

import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@cache
def kernels_digest() -> str:
    """Twelve hexadecimal digits that change with any source file of ``samtrt.kernels``."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in (".py", ".cu", ".cuh"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(FOLDER).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]

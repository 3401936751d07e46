"""A float32 array with a record, as a zarr group in a zip: one file, the same bytes each time."""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samtrt.errors import SamtrtError
from samtrt.hints import install

SUFFIX = ".zarr.zip"
BEGIN = b"PK\x03\x04"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can have
_MOST_FILES = 16
_FAILURES = (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile)


def require_zarr() -> Any:
    """zarr, or one line on how to get it.

    Raises:
        SamtrtError: it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise SamtrtError(
            f"zarr is not installed ({error}); run `{install('zarr')}`, or take safetensors"
        ) from error
    return zarr


def zarr_bytes(name: str, array: npt.NDArray[np.float32], attributes: dict[str, Any]) -> bytes:
    """A zip of a zarr group (version 2 of its format) that has an array, without compression.

    Args:
        name: of the array; one chunk.
        attributes: of the group, as JSON has them.

    Raises:
        SamtrtError: zarr is not installed.
    """
    zarr = require_zarr()
    file = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="samtrt-") as folder:
        is_old = not hasattr(zarr.Group, "create_array")  # zarr 2
        options = {} if is_old else {"zarr_format": 2}
        group = zarr.open_group(folder, mode="w", **options)
        little = np.ascontiguousarray(array, "<f4")
        if is_old:
            group.create_dataset(name, data=little, chunks=little.shape, compressor=None)
        else:
            group.create_array(name, data=little, chunks=little.shape, compressors=None)
        group.attrs.put(attributes)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _DATE)
                    packed.writestr(info, path.read_bytes())
    return file.getvalue()


def read_zarr(content: bytes | bytearray, name: str) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """What ``zarr_bytes`` has packed, or another program: the array, and the group's attributes.

    Raises:
        ValueError: it is damaged, or no such group.
        SamtrtError: zarr is not installed.
    """
    zarr = require_zarr()
    with tempfile.TemporaryDirectory(prefix="samtrt-") as folder:
        file = Path(folder) / f"group{SUFFIX}"
        file.write_bytes(content)
        try:
            with zipfile.ZipFile(file) as packed:
                if len(packed.namelist()) > _MOST_FILES or any(
                    one.file_size > 2 * len(content) for one in packed.infolist()
                ):
                    raise ValueError("it holds more than a group with an array")
            with zarr.storage.ZipStore(str(file), mode="r") as store:
                group = zarr.open_group(store, mode="r")
                found = group[name]
                if found.dtype != np.dtype("<f4") or found.nbytes > 2 * len(content):
                    raise ValueError(f"its {name} is {found.dtype} of shape {list(found.shape)}")
                return np.asarray(found[...]), dict(group.attrs)
        except _FAILURES as error:
            raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error

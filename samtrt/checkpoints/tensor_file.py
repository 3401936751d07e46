"""Files of named tensors, in the safetensors format.

https://github.com/huggingface/safetensors#format: eight bytes of header length (little-endian),
a JSON header, then all tensors end to end. Ours are read from memory rather than mapped, so that
a file that changes under a running process cannot change or end it, and are written without a
copy and without a temporary file of the writer's own.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le, Len

from samtrt.records import STRICT, parse_record

Dtype = Literal[
    "F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL",
    "F8_E4M3", "F8_E5M2",
]  # fmt: skip
ITEM_BYTES: dict[Dtype, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
    "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS: tuple[Dtype, ...] = ("F32", "F16", "BF16")  # what parameters and embeddings are
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 26  # a ViT-H's has some 80,000


@dataclass(frozen=True)
class RawTensor:
    """A tensor as a file has it.

    Attributes:
        dtype: its type.
        shape: its sizes.
        content: uint8 [product of shape · bytes of an item], little-endian, row by row.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    content: npt.NDArray[np.uint8] = field(repr=False)

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "RawTensor":
        """A float32 or float16 array's."""
        kinds: dict[str, Dtype] = {"float32": "F32", "float16": "F16"}
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return cls(kinds[array.dtype.name], array.shape, little.reshape(-1).view(np.uint8))

    def to_numpy(self) -> npt.NDArray[Any]:
        """The array in the file's memory.

        Raises:
            ValueError: bfloat16, which NumPy does not have.
        """
        kinds = {"F32": "<f4", "F16": "<f2"}
        if self.dtype not in kinds:
            raise ValueError(f"a tensor of type {self.dtype}, expected {' or '.join(kinds)}")
        return self.content.view(kinds[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class _Entry:
    __pydantic_config__: ClassVar[Any] = STRICT
    dtype: Dtype
    shape: Annotated[tuple[Annotated[int, Ge(0), Le(1 << 32)], ...], Len(0, 8)]
    data_offsets: tuple[int, int]


def write_tensors(
    path: Path | BytesIO,
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file of tensors, or one that is in memory.

    Raises:
        OSError: the file cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.content.nbytes
        offsets = [begin, end]
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors begin at a multiple of eight
    with path.open("wb") if isinstance(path, Path) else nullcontext(path) as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for name in names:
            file.write(tensors[name].content.data)


def is_tensor_file(start: bytes) -> bool:
    """Whether a file that begins so says that it is one of tensors."""
    return start[_LENGTH_BYTES : _LENGTH_BYTES + 2] in (b'{"', b"{}", b"{ ")


def read_tensors(
    content: bytearray, dtypes: Collection[Dtype] = FLOATS
) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """The tensors of a file's content, in its memory, and its metadata.

    Args:
        dtypes: what tensors may be of.

    Raises:
        ValueError: the content is no such file, or not all of one; the message is one line.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if len(content) < _LENGTH_BYTES or start > len(content) or length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length:,} bytes in a file of {len(content):,}")
    header = _parse_header(bytes(content[_LENGTH_BYTES:start]))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not text")
    entries = {name: parse_record(json.dumps(entry), _Entry) for name, entry in header.items()}
    for entry in entries.values():
        if entry.dtype not in dtypes:
            raise ValueError(f"a tensor of dtype {entry.dtype}, expected {' or '.join(dtypes)}")
    _check_offsets(entries.values(), len(content) - start)
    data = np.frombuffer(content, np.uint8)
    tensors = {}
    for name, entry in entries.items():
        begin, end = (start + offset for offset in entry.data_offsets)
        part = data[begin:end]
        if begin % ITEM_BYTES[entry.dtype]:
            part = part.copy()  # memory of its own is aligned
        tensors[name] = RawTensor(entry.dtype, entry.shape, part)
    return tensors, metadata


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _check_offsets(entries: Iterable[_Entry], size: int) -> None:
    """Tensors lie end to end and fill the file."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.data_offsets):
        begin, stop = entry.data_offsets
        if begin != end or stop - begin != math.prod(entry.shape) * ITEM_BYTES[entry.dtype]:
            raise ValueError(f"a tensor of shape {list(entry.shape)} at bytes {begin}…{stop}")
        end = stop
    if end != size:
        raise ValueError(f"{size:,} bytes of tensors, expected {end:,}")

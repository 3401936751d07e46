"""Files of tensors: the safetensors package reads what we write, we read what it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from samtrt.checkpoints.tensor_file import RawTensor, read_tensors, write_tensors

RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "matrix": RNG.standard_normal((3, 5)).astype(np.float32),
    "turned": RNG.standard_normal((3, 5)).astype(np.float32).T,
    "halves": RNG.standard_normal(7).astype(np.float16),
    "number": np.float32(3).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
    "name é": RNG.standard_normal((1, 2, 2)).astype(np.float32),
}


def test_the_package_reads_ours(tmp_path: Path) -> None:
    path = tmp_path / "ours"
    write_tensors(path, {name: RawTensor.of(array) for name, array in ARRAYS.items()}, {"a": "b"})
    found = safetensors.numpy.load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"a": "b"}


def test_we_read_the_packages() -> None:
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}, {"a": "b"}
    )
    tensors, metadata = read_tensors(bytearray(content))
    assert metadata == {"a": "b"} and tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors[name].to_numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensors[name].to_numpy(), array)


def test_bfloat16_keeps_its_bits() -> None:
    given = torch.randn(5, 3).bfloat16()
    tensors, _ = read_tensors(bytearray(safetensors.torch.save({"x": given})))
    found = torch.from_numpy(tensors["x"].content).view(torch.bfloat16).reshape(5, 3)
    assert torch.equal(found, given)
    with pytest.raises(ValueError, match="type BF16, expected F32 or F16"):
        tensors["x"].to_numpy()


def content_of(header: Any, data: bytes) -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_tensor_that_is_not_aligned_is_read() -> None:
    given = np.array([1.5, -2], np.float32)
    halves = np.array([3], np.float16)
    header = {"a": entry([1], 0, 2, "F16"), "b": entry([2], 2, 10)}
    tensors, _ = read_tensors(content_of(header, halves.tobytes() + given.tobytes()))
    np.testing.assert_array_equal(tensors["b"].to_numpy(), given)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (bytearray(), "a header of 0 bytes"),
        (bytearray(b"\x07"), "a header of"),
        (bytearray(b"\xff" * 20), "a header of"),
        (content_of(b"{", b""), "Expecting"),
        (content_of(b"[]", b""), "not a JSON object"),
        (content_of(b"\xff", b""), "decode"),
        (content_of(b"[" * 100_000, b""), "nested too deeply"),
        (content_of({"a": []}, b""), "object"),
        (content_of({"a": entry([2], 0, 8)}, b"1234567"), "7 bytes of tensors, expected 8"),
        (content_of({"a": entry([2], 0, 8)}, b"123456789"), "9 bytes of tensors, expected 8"),
        (content_of({"a": entry([3], 0, 8)}, b"12345678"), "shape \\[3\\] at bytes 0…8"),
        (content_of({"a": entry([1], 4, 8)}, b"12345678"), "at bytes 4…8"),
        (
            content_of({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"),
            "at bytes 0…4",
        ),
        (content_of({"a": entry([-1, -2], 0, 8)}, b"12345678"), "shape.0"),
        (content_of({"a": entry([1 << 40], 0, 1 << 42)}, b""), "shape.0"),
        (content_of({"a": entry([1 << 30, 1 << 30], 0, 8)}, b"12345678"), "at bytes 0…8"),
        (content_of({"a": entry([10**400], 0, 8)}, b"12345678"), "shape.0|number"),
        (content_of({"a": entry([2.0], 0, 8)}, b"12345678"), "shape.0"),
        (content_of({"a": entry([2], 0, 8, "F8_E4M3")}, b"12345678"), "dtype"),
        (content_of({"__metadata__": {"a": 1}}, b""), "metadata are not text"),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytearray, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        read_tensors(content)
    assert "\n" not in str(caught.value)

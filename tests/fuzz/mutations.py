"""Valid content → content from nobody's hand, by a seeded generator."""

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# What JSON may have in a field's place.
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2, 10**9, 10**400, 1.5, float("nan"), float("inf"), "", "x", "../../x",
    "os", "\x00\n", [], [0], [[[]]], [10**9] * 3, {}, {"a": {}}, "9" * 70, "a" * 64, "fp16",
    "bf16", "cuda", "tensorrt", list(range(2000)),
]  # fmt: skip
# Sizes and offsets that binary formats nest, in two, four and eight bytes.
_NUMBERS = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, 0x7FFFFFFF,
            0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # fmt: skip
_HEADER_BYTES = 4096
_HOSTILE_LINES = (
    b"Content-Length: -1", b"Content-Length: 5", b"Content-Length: 99999999999999999999",
    b"Content-Length: 1e3", b"Content-Length: \xc2\xb2", b"Content-Length: 3, 3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x",
    b"Content-Encoding: gzip", b"Expect: 100-continue", b"Expect: 200-ok", b"Upgrade: websocket",
    b"Connection: Upgrade\r\nUpgrade: h2c", b"Host: evil.example", b"Host: 127.0.0.1:99999",
    b"Host: [::1", b"Host:", b"Host: localhost\r\nHost: localhost", b"Origin: null",
    b"Origin: http://[", b"Origin: http://\xff\xfe", b"Sec-Fetch-Site: cross-site",
    b"Content-Type: image/jpeg", b"Content-Type: image/webp", b"Content-Type: \xff",
    b"Content-Type: application/json; charset=utf-16", b"Content-Type: multipart/form-data",
    b"X-Forwarded-For: x, y, z", b"X-Forwarded-For: " + b"1.2.3.4, " * 500,
    b"Authorization: Bearer \xe9", b"Range: bytes=0-1,2-3,-5", b"If-None-Match: *", b": empty",
    b"X-Long: " + b"a" * 60_000, b" folded: x", b"Bad Name: x", b"Cookie: " + b"a=b; " * 999,
)  # fmt: skip


def mutated(content: bytes, generator: np.random.Generator, others: Sequence[bytes] = ()) -> bytes:
    """The content with one to three changes of bytes.

    Args:
        others: valid contents of the same kind, whose parts may get into it.
    """
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 3])):
        if not data:
            break
        # Headers and ends decide more than the values in the middle.
        span = len(data) if generator.random() < 0.5 else min(len(data), _HEADER_BYTES)
        at = int(generator.integers(span))
        if generator.random() < 0.3:
            at = len(data) - 1 - at
        size = int(generator.integers(1, 64))
        kind = generator.integers(8 if others else 7)
        if kind == 0:
            data[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            data[at : at + size] = generator.bytes(size)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at : at + size] = bytes([0xFF, 0][int(generator.integers(2))] for _ in range(size))
        elif kind == 6:
            _write_number(data, at, generator)
        else:
            other = others[int(generator.integers(len(others)))]
            begin = min(at, len(other))
            size = size if generator.random() < 0.5 else len(other)
            data[at : at + size] = other[begin : begin + size]
    return bytes(data)


def _write_number(data: bytearray, at: int, generator: np.random.Generator) -> None:
    width = int(generator.choice([2, 4, 8]))
    order = "little" if generator.random() < 0.5 else "big"
    found = int.from_bytes(data[at : at + width], order)
    near = found + int(generator.choice([-1, 1, 16, 256])), len(data) - at, 2 * found
    number = int(generator.choice(np.array([*_NUMBERS, *near], object)))
    data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)


def mutated_json(text: str, generator: np.random.Generator) -> str:
    """The JSON object with one value changed, dropped or added, at any depth."""
    holder = value = json.loads(text)
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[int(generator.integers(len(keys)))]
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or generator.random() < 0.2:
            break
        holder = inner
    hostile = HOSTILE[int(generator.integers(len(HOSTILE)))]
    kind = generator.integers(6)
    if isinstance(inner, int | float) and generator.random() < 0.4:
        holder[key] += generator.choice([-1, 1, 2, 16, 0.25]).item()
    elif kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder["surplus"] = hostile
    elif kind == 1:
        holder.append(hostile)
    else:
        holder[key] = hostile
    return json.dumps(value)


def mutated_head(request: bytes, generator: np.random.Generator) -> bytes:
    """The HTTP request with one or two lines before its body changed, dropped, added or doubled."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for _ in range(generator.choice([1, 1, 2])):
        at = int(generator.integers(len(lines)))
        hostile = _HOSTILE_LINES[int(generator.integers(len(_HOSTILE_LINES)))]
        kind = generator.integers(5)
        if kind == 0:
            lines[at : at + 1] = []
        elif kind == 1:
            lines.insert(1, lines[at])
        elif kind == 2:
            lines[at] = mutated(lines[at], generator, _HOSTILE_LINES)
        elif kind == 3:
            lines.insert(1, hostile)
        else:
            name = hostile.partition(b":")[0].lower()
            lines = [line for line in lines if line.partition(b":")[0].lower() != name]
            lines.insert(1, hostile)
        lines = lines or [b""]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def resealed_png(content: bytes) -> bytes:
    """The PNG with the checksum of each chunk put right, so that the decoder reads on."""
    parts, at = [content[:8]], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + length]
        parts += [content[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(parts)

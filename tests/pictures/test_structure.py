"""Files that would keep a decoder busy for no picture's sake are refused before it sees them."""

import io
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from samtrt.errors import InputError
from samtrt.pictures import structure
from samtrt.pictures.reading import load_image
from samtrt.pictures.structure import check_structure


def jpeg(size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_scans(scans: int) -> bytes:
    """A valid progressive JPEG whose last refinement comes again until it has so many scans."""
    content = jpeg(progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    have = content.count(b"\xff\xda")
    return content[:end] + content[last:end] * (scans - have) + content[end:]


def with_comments(count: int) -> bytes:
    content = jpeg()
    return content[:2] + b"\xff\xfe\x00\x02" * count + content[2:]


def with_chunks(count: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    content = buffer.getvalue()
    chunk = b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")
    return content[:33] + chunk * count + content[33:]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (with_scans(structure.MAX_SCANS + 1), "100 scans"),
        (with_scans(20_000), "100 scans"),
        (with_comments(structure.MAX_SEGMENTS), "1,000 segments"),
        (with_comments(1_200_000), "1,000 segments"),
        (jpeg()[:2] + b"\xff\xd0" * 1_000_000 + jpeg()[2:], "1,000 segments"),
        (b"\xff\xd8" + b"\xff" * 4_000_000 + jpeg()[2:], "65,536 bytes"),
        (b"\xff\xd8\xff\xfe\0\2" + b"x" * 4_000_000 + jpeg()[2:], "65,536 bytes"),
        (b"\xff\xd8\xff\xd9" * 1_000_000, "1,000 segments"),
        (with_chunks(structure.MAX_CHUNKS), "100,000 chunks"),
    ],
)
def test_what_no_picture_needs_is_refused_at_once(content: bytes, what: str) -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match=f"^the picture has more than {what}"):
        load_image(content)
    assert time.perf_counter() - started < 1  # minutes, some of them, when they are decoded


@pytest.mark.parametrize(
    "content",
    [
        jpeg(),
        jpeg(progressive=True),
        jpeg(restart_marker_blocks=1),  # thousands of restarts are one scan
        jpeg(exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0" + bytes(50_000), icc_profile=bytes(500_000)),
        with_scans(structure.MAX_SCANS),
        with_comments(structure.MAX_SEGMENTS - 50),
        with_chunks(1_000),
        jpeg() + with_scans(200),  # nothing after the end is read
    ],
)
def test_pictures_pass(content: bytes) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(load_image(content), pixels)


def test_damaged_files_are_left_to_the_decoder() -> None:
    rng = np.random.default_rng(1)
    for whole in (jpeg(progressive=True), with_chunks(3)):
        for length in range(1, len(whole), 97):
            content = bytearray(whole[:length])
            for _ in range(3):
                content[rng.integers(len(content))] = rng.integers(256)
            check_structure(bytes(content), "it")


def test_long_runs_of_any_byte_take_linear_time() -> None:
    started = time.perf_counter()
    scan = jpeg()[:-2]
    for run in (b"\xff" * 8_000_000 + b"\0", b"\xff\0" * 4_000_000, b"\xff\xd0" * 4_000_000):
        check_structure(scan + run, "it")
    assert time.perf_counter() - started < 10

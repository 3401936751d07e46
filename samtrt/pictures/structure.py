"""How a picture's file is put together, looked at before a decoder sees it.

Decoding takes time and memory by the pixel, and pixels are bounded elsewhere. What a few megabytes
can ask for a million times over, whatever the pixels, is bounded here: the scans and segments of a
JPEG, the chunks of a PNG. (Pillow 13 walks GIF, TIFF and EXIF in a time that their bytes bound;
WebP, AVIF and JPEG 2000 are walked by their C libraries.)
"""

import re
import struct

from samtrt.errors import InputError

# Each scan of a JPEG passes over the whole picture; progressive files have about ten.
MAX_SCANS = 100
# Segments of a JPEG (large colour profiles and depth maps take some dozens), and bytes between.
MAX_SEGMENTS = 1_000
MAX_FILLER = 65_536
# Chunks of a PNG: 100 megapixels in pieces of 8 KiB are 37,000.
MAX_CHUNKS = 100_000

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # restarts are part of a scan
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xDA)))  # TEM, RST0 … RST7, SOI, EOI


def check_structure(content: bytes, name: str) -> None:
    """Refuses a file that would keep its decoder busy for no picture's sake.

    A damaged file passes, and so does one of another format: the decoder says what is wrong.

    Args:
        content: the whole file.
        name: what errors call it.

    Raises:
        InputError: more scans, segments or chunks than pictures have.
    """
    if content.startswith(b"\xff\xd8\xff"):
        _check_jpeg(content, name)
    elif content.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(content, name)


def _check_jpeg(content: bytes, name: str) -> None:
    position, segments, scans, filler, pattern = 2, 0, 0, 0, _MARKER
    while found := pattern.search(content, position):
        marker = content[found.start() + 1]
        segments += 1
        if pattern is _MARKER:
            filler += found.start() - position
        pattern, position = _MARKER, found.end()
        if marker == _END and scans:
            break  # no decoder reads on
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(content[position : position + 2], "big")
        if marker == _SCAN:
            scans += 1
            pattern = _MARKER_AFTER_SCAN
        if scans > MAX_SCANS:
            raise _refusal(name, f"{MAX_SCANS} scans")
        if segments > MAX_SEGMENTS:
            raise _refusal(name, f"{MAX_SEGMENTS:,} segments")
        if filler > MAX_FILLER:
            raise _refusal(name, f"{MAX_FILLER:,} bytes between its segments")


def _check_png(content: bytes, name: str) -> None:
    position, chunks = 8, 0
    while position + 4 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        position += 12 + length
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise _refusal(name, f"{MAX_CHUNKS:,} chunks")


def _refusal(name: str, what: str) -> InputError:
    return InputError(f"{name} has more than {what}, which no picture needs; save it anew")

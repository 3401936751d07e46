"""Pictures of every kind and of no kind: decoded as a viewer shows them, or one clear line."""

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from samtrt.errors import InputError, SamtrtError
from samtrt.pictures.reading import (
    check_png_output,
    load_image,
    read_file,
    read_png_texts,
    save_png,
    save_pngs,
)

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_rgb_from_file_and_from_bytes(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    np.testing.assert_array_equal(load_image(path), RGB)
    np.testing.assert_array_equal(load_image(str(path)), RGB)
    np.testing.assert_array_equal(load_image(path.read_bytes()), RGB)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(format: str) -> None:
    flat = np.full((8, 16, 3), (200, 40, 90), np.uint8)
    decoded = load_image(encoded(Image.fromarray(flat), format))
    assert decoded.shape == (8, 16, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - flat).max() <= 4


def test_one_pixel() -> None:
    assert load_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def test_greyscale() -> None:
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(grey))), expected)
    one_bit = load_image(encoded(Image.new("1", (3, 2), 1)))
    assert one_bit.shape == (2, 3, 3) and (one_bit == 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format: str) -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = load_image(encoded(Image.fromarray(grey), format))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decoded.shape == (1, 4, 3)


def test_wide_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="32-bit"):
        load_image(encoded(Image.fromarray(np.array([[70_000]], np.int32)), "TIFF"))
    with pytest.raises(InputError, match="floating-point"):
        load_image(encoded(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF"))


def test_transparency_is_laid_over_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    decoded = load_image(encoded(Image.fromarray(rgba)))
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[0, 2].tolist() == [127, 127, 127]


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert load_image(encoded(palette)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    decoded = load_image(encoded(palette, transparency=0))
    assert decoded.tolist() == [[[255, 255, 255], [200, 100, 50]]]


# What a viewer shows for each orientation, by hand: EXIF 2.3, 4.6.4.A.
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),  # the camera was turned: shown rotated by 90° clockwise
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "MPO"])
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Every eighth of the picture differs, and compression leaves that.
    blocks = np.random.default_rng(1).integers(0, 2, (2, 4, 3), np.uint8) * 255
    image = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
    options: dict[str, Any] = {"exif": exif}
    if format in ("JPEG", "MPO"):
        options |= {"quality": 95, "subsampling": 0}
    elif format == "WEBP":
        options |= {"lossless": True}
    decoded = load_image(encoded(Image.fromarray(image), format, **options))
    shown = SHOWN[orientation](image)
    assert decoded.shape == shown.shape
    assert np.abs(decoded.astype(int) - shown).max() < 64
    assert len({SHOWN[other](image).tobytes() for other in SHOWN}) == 8  # any other would differ


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    """Whatever stands in it, the pixels are there; Pillow fails when it writes such EXIF anew."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    exif[0x011A] = 72.5
    raw, rng = exif.tobytes(), np.random.default_rng(3)
    pillow_failed = 0
    for _ in range(400):
        damaged = bytearray(raw)
        for position in rng.integers(14, len(raw), 2):
            damaged[position] = rng.integers(0, 256)
        content = encoded(Image.fromarray(RGB), "JPEG", exif=bytes(damaged))
        assert load_image(content).shape in ((4, 6, 3), (6, 4, 3))
        with Image.open(io.BytesIO(content)) as image:
            try:
                ImageOps.exif_transpose(image)
            except Exception:
                pillow_failed += 1
    assert pillow_failed  # or this test shows nothing


def test_broken_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    exif[0x010E] = "a picture"
    content = encoded(Image.fromarray(RGB), "PNG", exif=exif)
    np.testing.assert_array_equal(load_image(content), RGB)


def test_cmyk() -> None:
    decoded = load_image(encoded(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "JPEG"))
    assert (decoded == 255).all()


def test_very_long_picture() -> None:
    assert load_image(encoded(Image.new("RGB", (20_000, 10)))).shape == (10, 20_000, 3)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no picture at .*absent\.jpg"):
        load_image(tmp_path / "absent.jpg")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        load_image(tmp_path)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="is empty"):
        load_image(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "content", [b"hello, this is text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0"]
)
def test_not_a_picture(content: bytes) -> None:
    with pytest.raises(InputError, match="is not a picture; expected one of PNG"):
        load_image(content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encoded(Image.fromarray(noise), format)
    with pytest.raises(InputError) as caught:
        load_image(content[: len(content) // 2])
    assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_an_input_error_or_a_picture() -> None:
    """Whatever a decoder raises on damage, the user sees one kind of error."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
    refused = 0
    for format in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "AVIF"):
        content = encoded(Image.fromarray(noise), format)
        for _ in range(60):
            damaged = bytearray(content)
            for position in rng.integers(0, len(damaged), 3):
                damaged[position] = rng.integers(0, 256)
            try:
                assert load_image(bytes(damaged), max_pixels=10_000).ndim == 3
            except InputError:
                refused += 1
    assert refused > 30


@pytest.mark.parametrize("size", [(50_000, 50_000), (15_000, 7_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_refused_unopened(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at most 100 megapixels"):
        load_image(png_header(*size))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"huge\.png is too large for a picture; at most 1024 MiB"):
        load_image(tmp_path / "huge.png")
    (tmp_path / "six.bin").write_bytes(b"123456")
    assert read_file(tmp_path / "six.bin", 6) == b"123456"
    with pytest.raises(InputError, match="too large"):
        read_file(tmp_path / "six.bin", 5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_and_bounded(tmp_path: Path) -> None:
    for size, fits in ((100, True), (101, False)):
        pipe = tmp_path / f"{size}.png"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(bytes(size),))
        writer.start()
        if fits:
            assert read_file(pipe, 100) == bytes(size)
        else:
            with pytest.raises(InputError, match="too large"):
                read_file(pipe, 100)
        writer.join()


def test_texts_of_a_png(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", RGB, {"samtrt": "abc"})
    assert read_png_texts(tmp_path / "a.png") == {"samtrt": "abc"}
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), RGB)
    save_png(tmp_path / "b.png", RGB)
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert all(read_png_texts(tmp_path / name) == {} for name in ("b.png", "c.png", "absent.png"))


def test_own_pixel_limit() -> None:
    with pytest.raises(InputError, match=r"6×4\); at most 2e-05 megapixels"):
        load_image(encoded(Image.fromarray(RGB)), max_pixels=20)


def test_save_png_round_trip(tmp_path: Path) -> None:
    save_png(tmp_path / "new folder" / "a.png", RGB)
    np.testing.assert_array_equal(load_image(tmp_path / "new folder" / "a.png"), RGB)


def test_save_below_a_file_fails_cleanly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SamtrtError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", RGB)


def test_several_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pngs({tmp_path / "a.png": RGB, tmp_path / "b.png": RGB[..., 0]})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["a.png", "b.png"]

    save, calls = Image.Image.save, []

    def full_at_the_second(self: Image.Image, *args: Any, **options: Any) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full_at_the_second)
    with pytest.raises(SamtrtError, match=r"cannot write .*c\.png: No space left on device"):
        save_pngs({tmp_path / "a.png": RGB[::-1], tmp_path / "c.png": RGB})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_outputs_are_checked_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_png_output(tmp_path / "new" / "folder" / "a.PNG")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"ends in \.png, not .*a\.jpg"):
        check_png_output(tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: not a folder"):
        check_png_output(tmp_path / "file" / "folder" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        check_png_output(tmp_path / "folder.png")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(InputError, match="no write permission"):
        check_png_output(tmp_path / "a.png")

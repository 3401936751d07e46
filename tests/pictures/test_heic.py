"""HEIC, as phones write it: decoded where the extra is installed, one line where it is not."""

import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import skimage.data
from PIL import Image

from samtrt.errors import InputError
from samtrt.jobs.sources import find_sources
from samtrt.pictures.reading import load_image

PHOTO = skimage.data.astronaut()[:96, :160]


def heic(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    options = {} if exif is None else {"exif": exif.tobytes()}
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def is_near(decoded: np.ndarray, photo: np.ndarray) -> bool:
    """Whether it is the photo, but for what the compression costs."""
    return (
        decoded.shape == photo.shape
        and float(np.abs(decoded.astype(int) - photo.astype(int)).mean()) < 6
    )


def test_a_photo() -> None:
    decoded = load_image(heic(Image.fromarray(PHOTO)))
    assert decoded.dtype == np.uint8 and is_near(decoded, PHOTO)
    assert not is_near(decoded[::-1], PHOTO)


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(Image.fromarray(PHOTO), exif))
    assert is_near(load_image(path), np.rot90(PHOTO, -1))


def test_transparent_pixels_lie_over_white() -> None:
    rgba = np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)])
    assert is_near(load_image(heic(Image.fromarray(rgba))), np.full_like(PHOTO, 255))


def test_too_many_pixels_are_refused_undecoded() -> None:
    with pytest.raises(InputError, match=r"too large \(160×96\)"):
        load_image(heic(Image.fromarray(PHOTO)), max_pixels=15_000)


@pytest.mark.parametrize("length", [20, 40, 300, -2000])
def test_a_cut_file_is_one_line(length: int) -> None:
    content = heic(Image.fromarray(PHOTO))
    with pytest.raises(InputError, match=r"^the picture is (damaged|not a picture)") as raised:
        load_image(content[:length])
    assert "\n" not in str(raised.value)


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(heic(Image.fromarray(PHOTO)))
    assert list(find_sources([tmp_path]).pictures) == [Path("IMG_1.HEIC")]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert list(find_sources([tmp_path]).pictures) == [Path("IMG_1.HEIC")]  # not passed over
    with pytest.raises(InputError, match=r"pip install pillow-heif` \(the extra samtrt\[heic\]\)"):
        load_image(path)


def test_avif_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "AVIF", quality=90)
    assert is_near(load_image(buffer.getvalue()), PHOTO)

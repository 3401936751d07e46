"""Pictures from files and bytes that nobody has checked, and PNGs back to files."""

import io
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from samtrt.errors import InputError
from samtrt.files import replacing

# Formats that decode without helper programs (Pillow's EPS plugin would start Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# A file of a few kilobytes can decode to gigabytes; 100 megapixels are 300 MB as RGB.
MAX_PIXELS = 100_000_000

# What undoes each EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decodes a picture as a viewer would show it.

    The EXIF orientation is applied, 16-bit greys are scaled to 8 bits, transparent pixels are
    laid over white, palettes and greyscale become RGB; of an animation the first picture is taken.

    Args:
        source: path of a file, or the content of one.
        max_pixels: width × height above which the picture is refused before it is decoded.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        InputError: the file is missing, unreadable, empty, no picture, damaged or too large.
    """
    if isinstance(source, bytes):
        name, content = "the picture", source
    else:
        name, content = str(source), _read(Path(source))
    if not content:
        raise InputError(f"{name} is empty; expected a PNG, JPEG or another picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is nothing the user can act on
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(name, image.size, max_pixels)
                return _to_rgb(name, image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not a picture; expected one of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # each decoder fails on damage in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is damaged and cannot be decoded ({reason})") from error


def save_png(path: str | os.PathLike[str], pixels: npt.NDArray[np.uint8]) -> None:
    """Writes [H, W] grey or [H, W, 3] RGB uint8 as a PNG, whole or not at all.

    Raises:
        SamtrtError: the file cannot be written.
    """
    save_pngs({Path(path): pixels})


def save_pngs(files: Mapping[Path, npt.NDArray[np.uint8]]) -> None:
    """``save_png`` for several files: all take their names, or none does.

    Raises:
        SamtrtError: one of the files cannot be written.
    """
    with ExitStack() as stack:
        for path, pixels in files.items():
            temporary = stack.enter_context(replacing(path))
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)


def check_png_output(path: Path) -> None:
    """Refuses a name under which no mask can be written, before anything is computed for it.

    Raises:
        InputError: the name does not end in .png (JPEG would blur a mask's edge), is a folder's,
            or lies where nothing can be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"masks are written as PNG; expected a name that ends in .png, not {path}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "no write permission" if existing.is_dir() else "not a folder"
        raise InputError(f"cannot write {path}: {existing}: {reason}; give another folder")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no picture at {path}; give the path of a picture file") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a picture file") from error


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _too_large(name, f"{width}×{height}", max_pixels)


def _too_large(name: str, size: str, max_pixels: int) -> InputError:
    return InputError(
        f"{name} is too large ({size}); at most {max_pixels / 1e6:g} megapixels are decoded, "
        "scale the picture down"
    )


def _to_rgb(name: str, image: Image.Image) -> npt.NDArray[np.uint8]:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        return _scale_grey(name, np.asarray(upright))
    if upright.mode == "F":
        raise InputError(
            f"{name} holds floating-point pixels, whose range is unknown; expected 8 or 16 bits, "
            "convert it first"
        )
    if upright.has_transparency_data:
        with_alpha = upright.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        upright = Image.alpha_composite(white, with_alpha)
    return np.array(upright.convert("RGB"))


def _scale_grey(name: str, grey: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """16-bit greys → RGB; Pillow's own conversion would clip everything above 255 to white."""
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{name} holds 32-bit pixels; expected 8 or 16 bits, convert it first")
    eight_bits = ((values + 128) // 257).astype(np.uint8)
    return np.repeat(eight_bits[..., None], 3, axis=-1)

"""Pictures from files and bytes that nobody has checked, and PNGs back to files."""

import io
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from samtrt.errors import InputError
from samtrt.files import check_output, replacing, write_bytes
from samtrt.hints import install_packages
from samtrt.pictures.structure import check_structure

# Formats that decode without helper programs (Pillow's EPS plugin would start Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# What phones take; decoded by pillow-heif (the extra `heic`) where it is installed.
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))

# A file of a few kilobytes can decode to gigabytes; 100 megapixels are 300 MB as RGB.
MAX_PIXELS = 100_000_000

# Above this a file is refused unread: 100 megapixels of 16-bit RGB without compression are 600 MB.
MAX_FILE_BYTES = 1 << 30

# Modes are converted in strips of about this many pixels, so that a picture's whole costs no more
# than Pillow's copy (4 bytes a pixel, twice that while it is turned) and the result (3).
_STRIP_PIXELS = 1 << 20


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
        InputError: the file is missing, unreadable, empty, no picture, damaged, too large, put
            together as no picture is (``check_structure``), or HEIC without pillow-heif.
    """
    if isinstance(source, bytes):
        return decode_image(source, "the picture", max_pixels)
    return decode_image(read_file(source), str(source), max_pixels)


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a picture's file; of one that is too large no more than its size is read.

    Raises:
        InputError: the file is missing, unreadable or larger than ``max_bytes``.
    """
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > max_bytes else file.read(max_bytes + 1)  # a pipe has no size
    except FileNotFoundError as error:
        raise InputError(f"no picture at {path}; give the path of a picture file") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a picture file") from error
    if max(size, len(content)) > max_bytes:
        raise InputError(
            f"{path} is too large for a picture; at most {max_bytes / 2**20:g} MiB are read, "
            "compress it or scale it down"
        )
    return content


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """``load_image`` of a file's content, which errors call ``name``."""
    if not content:
        raise InputError(f"{name} is empty; expected a PNG, JPEG or another picture")
    check_structure(content, name)
    formats: tuple[str, ...] = FORMATS
    if _is_heic(content):
        _register_heif(name)
        formats = (*FORMATS, "HEIF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is nothing the user can act on
            with Image.open(io.BytesIO(content), formats=formats) as image:
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
    except MemoryError as error:
        raise InputError(f"{name} takes more memory than there is; scale it down") from error
    except Exception as error:  # each decoder fails on damage in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is damaged and cannot be decoded ({reason})") from error


def save_png(
    path: str | os.PathLike[str],
    pixels: npt.NDArray[np.uint8],
    texts: Mapping[str, str] | None = None,
    palette: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Writes [H, W] grey (8 or 16 bits) or [H, W, 3] RGB as a PNG, whole or not at all.

    Args:
        texts: keyword → Latin-1 text, kept in the file (``read_png_texts``).
        palette: [N, 3] RGB; the 8-bit pixels are indices into it.

    Raises:
        SamtrtError: the file cannot be written.
    """
    write_bytes(path, png_bytes(pixels, texts, palette))


def png_bytes(
    pixels: npt.NDArray[np.uint8],
    texts: Mapping[str, str] | None = None,
    palette: npt.NDArray[np.uint8] | None = None,
) -> bytes:
    """What ``save_png`` writes."""
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    file = io.BytesIO()
    _save_png(file, image, texts)
    return file.getvalue()


def save_pngs(files: Mapping[Path, npt.NDArray[np.uint8]]) -> None:
    """``save_png`` for several files: all take their names, or none does.

    Raises:
        SamtrtError: one of the files cannot be written.
    """
    with ExitStack() as stack:
        for path, pixels in files.items():
            _save_png(stack.enter_context(replacing(path)), Image.fromarray(pixels))


def read_png_texts(path: str | os.PathLike[str] | IO[bytes]) -> dict[str, str]:
    """The texts that ``save_png`` has kept in a PNG; empty for any other file."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except Exception:  # missing, no PNG, damaged: each in its own way
        return {}


def check_png_output(path: Path) -> None:
    """Refuses a name under which no mask can be written, before anything is computed for it.

    Raises:
        InputError: the name does not end in .png (JPEG would blur a mask's edge), is a folder's,
            or lies where nothing can be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"masks are written as PNG; expected a name that ends in .png, not {path}")
    check_output(path)


def _save_png(
    file: Path | io.BytesIO, image: Image.Image, texts: Mapping[str, str] | None = None
) -> None:
    chunks = PngInfo()
    for keyword, text in (texts or {}).items():
        chunks.add_text(keyword, text)
    image.save(file, format="PNG", compress_level=3, pnginfo=chunks)


def _is_heic(content: bytes) -> bool:
    """Whether a file begins as HEIC does: a box of type ``ftyp`` with one of its brands."""
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[at : at + 4] for at in range(16, end, 4))}
    return not brands.isdisjoint(_HEIC_BRANDS) and b"avif" not in brands


def _register_heif(name: str) -> None:
    """Lets Pillow open HEIC.

    Raises:
        InputError: pillow-heif is not installed.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError(
            f"{name} is HEIC, and pillow-heif, which reads it, is not installed; run "
            f"`{install_packages('pillow-heif')}` (the extra samtrt[heic]), or convert it to JPEG"
        ) from error
    register_heif_opener(thumbnails=False)


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
    upright = _upright(image)
    if upright.mode == "F":
        raise InputError(
            f"{name} holds floating-point pixels, whose range is unknown; expected 8 or 16 bits, "
            "convert it first"
        )
    width, height = upright.size
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        rgb[top:bottom] = _strip_to_rgb(name, upright.crop((0, top, width, bottom)))
    return rgb


def _strip_to_rgb(name: str, strip: Image.Image) -> npt.NDArray[np.uint8]:
    if strip.mode == "I" or strip.mode.startswith("I;16"):
        return _scale_grey(name, np.asarray(strip))
    if strip.has_transparency_data:
        with_alpha = strip.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        strip = Image.alpha_composite(white, with_alpha)
    return np.asarray(strip.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # first: the TIFF plugin turns the picture itself and drops the tag
    image.getexif()  # the picture keeps what was read
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)  # Pillow would write it anew, which fails on damaged EXIF
    return ImageOps.exif_transpose(image)


def _scale_grey(name: str, grey: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """16-bit greys → RGB; Pillow's own conversion would clip everything above 255 to white."""
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{name} holds 32-bit pixels; expected 8 or 16 bits, convert it first")
    eight_bits = ((values + 128) // 257).astype(np.uint8)
    return np.repeat(eight_bits[..., None], 3, axis=-1)

"""Pictures from strangers: limits first, pixels after."""

import io
import warnings
from http import HTTPStatus

import numpy as np
import numpy.typing as npt
from PIL import Image

from samtrt.errors import InputError
from samtrt.pictures.reading import load_image
from samtrt.pictures.structure import check_structure
from samtrt.server.problems import RequestError, not_a_picture
from samtrt.server.settings import PICTURE_TYPES, Settings


def decode_picture(data: bytes, media_type: str, settings: Settings) -> npt.NDArray[np.uint8]:
    """Decodes an upload whose header keeps the limits; no pixel is decoded before that is known.

    Returns:
        [H, W, 3] uint8 RGB, as ``load_image``.

    Raises:
        RequestError: 415 for another format than declared, 413 for too many pixels, 422 for a
            damaged picture.
    """
    try:
        check_structure(data, "the picture")
        _check_header(data, media_type, settings)
        return load_image(data, settings.max_pixels)
    except InputError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error


def _check_header(data: bytes, media_type: str, settings: Settings) -> None:
    too_large = RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the picture has too many pixels; the limit is {settings.max_pixels / 1e6:g} megapixels "
        f"and {settings.max_side} a side, so scale it down",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(PICTURE_TYPES.values())) as image:
                # Cameras append previews or a second view to a JPEG; Pillow calls that MPO.
                found = "JPEG" if image.format == "MPO" else image.format
                width, height = image.size
    except Image.DecompressionBombError:
        raise too_large from None
    except MemoryError as error:
        raise InputError("the picture takes more memory than there is; scale it down") from error
    except Exception:  # Pillow's decoders raise nearly anything on hostile bytes
        raise not_a_picture() from None
    if found != PICTURE_TYPES[media_type]:
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {found} but the Content-Type says {media_type}; send the type that it is",
        )
    if width * height > settings.max_pixels or max(width, height) > settings.max_side:
        raise too_large

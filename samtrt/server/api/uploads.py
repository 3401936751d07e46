"""Pictures as clients send them: a file as the body, or in a form."""

import hashlib
from http import HTTPStatus

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from samtrt.server.problems import RequestError, not_a_picture
from samtrt.server.settings import PICTURE_TYPES

OCTETS = "application/octet-stream"
FORM = "multipart/form-data"
FIELD = "file"  # of a form


def type_of(content_type: str | None) -> str:
    """A media type without its parameters, in lower case; empty for none."""
    return (content_type or "").split(";")[0].strip().lower()


def found_type(data: bytes) -> str:
    """The media type that a picture's first bytes tell.

    Raises:
        RequestError: 415, they are no picture's that is taken.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise not_a_picture()


async def uploaded(request: Request) -> tuple[bytes, str]:
    """The picture's file and its media type.

    Raises:
        RequestError: 415 for a type that is not taken, 400 or 422 for a form without one file.
    """
    media_type = type_of(request.headers.get("content-type"))
    if media_type == FORM:
        data, media_type = await _file_of_form(request)
    else:
        data = await request.body()
    if media_type == OCTETS:
        return data, found_type(data)
    if media_type in PICTURE_TYPES:
        return data, media_type
    raise RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"the Content-Type must be one of {', '.join(PICTURE_TYPES)}, {OCTETS} or {FORM}; send the "
        "picture's file as the request body, or in a form",
    )


async def _file_of_form(request: Request) -> tuple[bytes, str]:
    one_file = RequestError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"the form must have one part, the picture's file, with the name `{FIELD}`",
    )
    try:
        async with request.form(max_files=1, max_fields=1) as form:
            parts = form.multi_items()
            if len(parts) != 1:
                raise one_file
            name, part = parts[0]
            if name != FIELD or not isinstance(part, UploadFile):
                raise one_file
            return await part.read(), type_of(part.content_type) or OCTETS
    except HTTPException as error:  # what starlette makes of a form that cannot be read
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"the form cannot be read; send `{FORM}` with one part, the picture's file, with the "
            f"name `{FIELD}`",
        ) from error


def picture_id(computed_by: str, media_type: str, data: bytes) -> str:
    """The id of a picture's embedding: the hash of its file and of what computes it.

    Args:
        computed_by: ``Sam.computed_by``.
    """
    key = hashlib.sha256(f"{computed_by} {media_type}\n".encode())
    key.update(data)
    return key.hexdigest()

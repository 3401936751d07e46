"""What a request asks about a picture, as decoders take it."""

import base64
import binascii
from http import HTTPStatus

import numpy as np
import numpy.typing as npt

from samtrt.decoders.prompts import Prompt, Prompts
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError
from samtrt.server import schemas
from samtrt.server.problems import RequestError


def prompts_of(request: schemas.MaskRequest, picture: EmbeddedPicture, most: int) -> list[Prompts]:
    """A request's prompts in the model's frame, checked.

    Raises:
        InputError: a prompt that is empty, contradicts itself or leaves the picture; says which of
            several.
        RequestError: 422, the request has a list and a prompt of its own, or more than ``most``.
    """
    if request.prompts is None:
        return [_in_model_frame(request, picture)]
    if request.model_fields_set & schemas.MaskPrompt.model_fields.keys():
        raise RequestError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the request has a prompt of its own beside `prompts`; put it into that list",
        )
    if len(request.prompts) > most:
        raise RequestError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"the request has {len(request.prompts)} prompts, and {most} is the limit; "
            "send several requests",
        )
    found = []
    for number, prompt in enumerate(request.prompts):
        try:
            found.append(_in_model_frame(prompt, picture))
        except InputError as error:
            raise InputError(f"prompts.{number}: {error}") from error
    return found


def _in_model_frame(prompt: schemas.MaskPrompt, picture: EmbeddedPicture) -> Prompts:
    coords = [number for point in prompt.point_coords for number in point]
    mask = None
    if prompt.mask_input is not None:
        mask = logits_of_text(prompt.mask_input, picture.mask_side)
    return Prompt.from_numbers(coords, prompt.point_labels, prompt.box, mask).to_model_frame(
        picture
    )


def logits_of_text(text: str, side: int) -> npt.NDArray[np.float32]:
    """What ``answers.text_of_logits`` wrote: [1, side, side].

    Raises:
        InputError: it is no base64, or not of that size.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            "mask_input is not base64; send the low_res_logits of an earlier answer"
        ) from error
    if len(data) != 4 * side * side:
        raise InputError(
            f"mask_input has {len(data):,} bytes, expected {4 * side * side:,}: {side} × {side} "
            "little-endian float32, the low_res_logits of an earlier answer"
        )
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(1, side, side)

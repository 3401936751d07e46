"""What every mask decoder is, whatever runs it."""

from typing import Protocol

import torch
from torch import Tensor

from samtrt.decoders.prompts import Prompts
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import EngineError, InputError


class Decoder(Protocol):
    """Prompts on an embedded picture → mask logits. Safe to call from several threads.

    Attributes:
        img_size: side of the model's frame, in pixels, that prompts refer to.
        num_masks: masks that it has for a prompt: 4 (see ``mask_decoder.select_masks``), or 1 for
            an ONNX file that was exported with ``--return-single-mask``.
        parameters_sha256: the parameter set; empty where it is not known.
        note: what a user must know of the parameters (``Parameters.note``).
    """

    img_size: int
    num_masks: int
    parameters_sha256: str
    note: str

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Decodes B prompts on one picture; B may be 0.

        Args:
            picture: on any device.
            prompts: on any device.
            multimask_output: masks 1…3 (whole, part, subpart) of each prompt; otherwise mask 0,
                or the one that a decoder with ``num_masks`` 1 has.

        Returns:
            Logits [B, M, 4h, 4w] and predicted IoUs [B, M] float32, M = 3 or 1 (SAM-HQ's: 1, the
            best of the three), in memory of their own, on the decoder's device (ONNX Runtime's: on
            the picture's).

        Raises:
            EngineError: the picture is of a model of another size.
            InputError: three masks are asked of a decoder that has one.
        """
        ...


def masks_above(
    decoder: Decoder, picture: EmbeddedPicture, prompts: Prompts, least_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the masks of prompts (``multimask_output``) those whose predicted IoU is above.

    A decoder with a method of this name draws no others.

    Returns:
        Logits [K, 4h, 4w], their indices [K] among the B · M masks, and predicted IoUs [B, M];
        float32, on the decoder's device, as of ``Decoder``.
    """
    own = getattr(decoder, "masks_above", None)
    if own is None:
        return drawn_above(decoder, picture, prompts, least_iou)
    found: tuple[Tensor, Tensor, Tensor] = own(picture, prompts, least_iou)
    return found


def drawn_above(
    decoder: Decoder, picture: EmbeddedPicture, prompts: Prompts, least_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``masks_above`` of a decoder that draws all masks."""
    masks, scores = decoder(picture, prompts, True)
    chosen = (scores.flatten() > least_iou).nonzero()[:, 0]
    return masks.flatten(0, 1)[chosen], chosen, scores


def check_fits(decoder: Decoder, img_size: int, multimask_output: bool) -> None:
    """Refuses pictures of a model for ``img_size`` pixels, or a number of masks, that are not this
    decoder's, as ``Decoder`` says."""
    if decoder.img_size != img_size:
        raise EngineError(
            f"the mask decoder is for pictures of {decoder.img_size}² pixels and the encoder for "
            f"{img_size}²; take the decoder and the engine of the same model"
        )
    if multimask_output and decoder.num_masks == 1:
        raise InputError(
            "three masks are asked for, and this mask decoder was exported with "
            "--return-single-mask; export it without"
        )


def check_channels(picture: EmbeddedPicture, channels: int) -> None:
    """Refuses an embedding of a model of another kind: SAM-HQ's has more channels than SAM's.

    Raises:
        EngineError: the embedding has not so many channels.
    """
    if picture.features.shape[1] != channels:
        raise EngineError(
            f"the mask decoder takes embeddings of {channels} channels, and this picture's has "
            f"{picture.features.shape[1]}; take the decoder and the encoder of the same model"
        )


def no_masks(picture: EmbeddedPicture, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What no prompts are answered: logits [0, count, 4h, 4w] and scores [0, count]."""
    side = picture.mask_side
    logits = torch.empty(0, count, side, side, dtype=torch.float32, device=device)
    return logits, torch.empty(0, count, dtype=torch.float32, device=device)

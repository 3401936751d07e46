"""The parity gate: no engine leaves the build before its output was compared with fp32.

FP16 engines of vision transformers have been silently wrong in several TensorRT versions; a
wrong embedding still decodes to masks, only to worse ones, so nobody notices without a gate.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from samtrt.building.accuracy import (
    Decode,
    decode_prompts,
    load_picture,
    mask_ious,
    relative_l2,
    worst,
)
from samtrt.checkpoints.parameters import Parameters
from samtrt.console import progress_steps
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders.engine import FAILED, PASSED, ParityResult
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import InputError
from samtrt.modeling.image_encoder import ImageEncoderViT

MAX_RELATIVE_L2 = 0.03
MIN_MEAN_MASK_IOU = 0.99


def check_parity(
    encoder: ImageEncoder, parameters: Parameters, pictures: Sequence[str | Path]
) -> ParityResult:
    """Compares an encoder with the definition in fp32, picture by picture.

    Args:
        encoder: the one to judge.
        parameters: what it was built from.
        pictures: files.

    Returns:
        ``PASSED`` when the worst embedding is within ``MAX_RELATIVE_L2`` and the masks' mean IoU
        is at least ``MIN_MEAN_MASK_IOU``; ``FAILED`` otherwise (a NaN fails).

    Raises:
        InputError: no picture was given, or one cannot be read.
    """
    if not pictures:
        raise InputError("the parity gate needs at least one picture; give some, or skip the gate")
    reference = ImageEncoderViT(parameters.encoder_config).load(parameters.encoder())
    decode = fp32_decoder(parameters)
    errors, ious = [], []
    with torch.inference_mode(), progress_steps(len(pictures)) as announce:
        for path in pictures:
            announce(f"parity gate: {Path(path).name}")
            picture = load_picture(path, encoder.img_size)
            embedding = encoder(picture.pixels.to(encoder.device)).cpu()
            expected = reference(picture.pixels)
            errors.append(relative_l2(embedding, expected))
            logits, true = (decode_prompts(decode, x, picture) for x in (embedding, expected))
            ious.append(mask_ious(logits, true, picture))
    error, mean_iou = worst(errors), torch.cat(ious).mean().item()
    passed = error <= MAX_RELATIVE_L2 and mean_iou >= MIN_MEAN_MASK_IOU
    return ParityResult(PASSED if passed else FAILED, error, mean_iou, len(errors))


def fp32_decoder(parameters: Parameters) -> Decode:
    """The prompt encoder and mask decoder in fp32 on the CPU."""
    decoder = TorchDecoder.from_parameters(parameters)
    return lambda picture, prompts: decoder.all_masks(picture, prompts)[0]

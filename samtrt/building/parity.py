"""The parity gate: no engine leaves the build before its output was compared with fp32.

FP16 engines of vision transformers have been silently wrong in several TensorRT versions; a
wrong embedding still decodes to masks, only to worse ones, so nobody notices without a gate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.building.accuracy import (
    Decode,
    Picture,
    PictureSource,
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
from samtrt.modeling.bound import bound_encoder


@dataclass(frozen=True)
class Limits:
    """How far an engine may be from fp32.

    Attributes:
        relative_l2: of the worst embedding, at most.
        mean_mask_iou, worst_mask_iou: over all masks, at least.
    """

    relative_l2: float
    mean_mask_iou: float
    worst_mask_iou: float


# Half precisions: the error grows with the unit round-off u, and 8 u are allowed. Measured: 1.0 u
# with the trained demo model in fp16 and in bf16, up to 3.4 u (fp16) and 2.2 u (bf16) with random
# ViT-B, L and H, 3.8 u in Meta's own code. In fp32 the order of long sums makes the error: 1.1e-6
# is the largest measured, TF32 would make some 5e-4. Masks: of 168 of the demo model the worst had
# an IoU of 0.9913 in fp16 and 0.79 in bf16 (means 0.9994, 0.9930), and 0.9996 in fp32; about twice
# the distance from 1 is allowed.
# fp8: masks decide, and linear layers go back to fp16 until theirs hold. Where the gate's masks,
# whose clicks lie anywhere, agree with fp32's to 0.988 in the mean, those of clicks on objects do
# to 0.995 (the demo model's on 40 scenes; docs/performance.md).
LIMITS = {
    "fp16": Limits(8 * 2**-11, 0.998, 0.98),
    "bf16": Limits(8 * 2**-8, 0.99, 0.55),
    "fp32": Limits(1e-5, 0.9999, 0.99),
    "fp8": Limits(0.03, 0.988, 0.75),
}


def check_parity(
    encoder: ImageEncoder,
    parameters: Parameters,
    pictures: Sequence[PictureSource],
    precision: str,
    max_batch_size: int = 1,
) -> ParityResult:
    """Compares an encoder with the definition in fp32, picture by picture.

    Each picture is encoded alone, and once more as one of ``max_batch_size``; every picture of
    such a batch is compared.

    Args:
        encoder: the one to judge.
        parameters: what it was built from.
        pictures: files, or arrays [H, W, 3] uint8 RGB.
        precision: the encoder's; what ``LIMITS`` are taken for.
        max_batch_size: the largest batch that the encoder takes.

    Returns:
        ``PASSED`` when all is within the limits, ``FAILED`` otherwise (a NaN fails).

    Raises:
        InputError: no picture was given, or one cannot be read.
    """
    if not pictures:
        raise InputError("the parity gate needs at least one picture; give some, or skip the gate")
    comparison = Comparison(parameters)
    found: list[Difference] = []
    with torch.inference_mode(), progress_steps(len(pictures)) as announce:
        for first in range(0, len(pictures), max_batch_size):
            group = []
            for source in pictures[first : first + max_batch_size]:
                picture = load_picture(source, encoder.img_size)
                announce(f"parity gate: {picture.name}")
                expected = comparison.expect(picture)
                judged = _Judged(comparison, expected)
                judged.add(encoder(picture.pixels.to(encoder.device)))
                group.append(judged)
            if max_batch_size > 1:
                batch = [group[index % len(group)] for index in range(max_batch_size)]
                pixels = torch.cat([judged.expected.picture.pixels for judged in batch])
                embeddings = encoder(pixels.to(encoder.device))
                for embedding, judged in zip(embeddings.split(1), batch, strict=True):
                    judged.add(embedding)
            found += [difference for judged in group for difference in judged.differences]
    return verdict(found, LIMITS[precision], len(pictures))


@dataclass(frozen=True)
class Expected:
    """A picture with its fp32 embedding [1, 256, h, w] and the logits [P, 4, 4h, 4w] of that, or
    None where there is no mask decoder."""

    picture: Picture
    embedding: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Difference:
    """Between an embedding and what was expected: relative L2, and IoUs [P, 4] of the masks."""

    relative_l2: float
    mask_ious: Tensor | None


class Comparison:
    """Differences between embeddings, and the masks decoded from them, and fp32's.

    Args:
        parameters: of what is compared.
        reference: the encoder in fp32, on any device; None for the definition on the CPU.
    """

    def __init__(self, parameters: Parameters, reference: ImageEncoder | None = None) -> None:
        self._reference: Callable[[Tensor], Tensor]
        if reference is None:
            self._reference = bound_encoder(parameters.encoder_config, parameters.encoder())
        else:
            self._reference = lambda pixels: reference(pixels.to(reference.device)).cpu()
        # An image encoder alone is judged by what it gives.
        self._decode = fp32_decoder(parameters) if parameters.has_decoder else None

    def expect(self, picture: Picture) -> Expected:
        embedding = self._reference(picture.pixels)
        logits = self._decode and decode_prompts(self._decode, embedding, picture)
        return Expected(picture, embedding, logits)

    def difference(self, embedding: Tensor, expected: Expected) -> Difference:
        embedding = embedding.cpu()
        error = relative_l2(embedding, expected.embedding)
        if self._decode is None or expected.logits is None:
            return Difference(error, None)
        logits = decode_prompts(self._decode, embedding, expected.picture)
        return Difference(error, mask_ious(logits, expected.logits, expected.picture))


class _Judged:
    """What an encoder made of a picture, each of different bits once: some back ends encode a batch
    one by one."""

    def __init__(self, comparison: Comparison, expected: Expected) -> None:
        self.expected = expected
        self.differences: list[Difference] = []
        self._comparison = comparison
        self._embeddings: list[Tensor] = []

    def add(self, embedding: Tensor) -> None:
        embedding = embedding.cpu()
        if not any(torch.equal(embedding, other) for other in self._embeddings):
            self._embeddings.append(embedding)
            self.differences.append(self._comparison.difference(embedding, self.expected))


def verdict(differences: Sequence[Difference], limits: Limits, pictures: int) -> ParityResult:
    """``PASSED`` where all is within the limits; a NaN fails."""
    error = worst(difference.relative_l2 for difference in differences)
    ious = [d.mask_ious for d in differences if d.mask_ious is not None]
    if not ious:
        status = PASSED if error <= limits.relative_l2 else FAILED
        return ParityResult(status, error, None, pictures)
    mean_iou, worst_iou = torch.cat(ious).mean().item(), torch.cat(ious).min().item()
    passed = (
        error <= limits.relative_l2
        and mean_iou >= limits.mean_mask_iou
        and worst_iou >= limits.worst_mask_iou
    )
    return ParityResult(PASSED if passed else FAILED, error, mean_iou, pictures, worst_iou)


def fp32_decoder(parameters: Parameters) -> Decode:
    """The prompt encoder and mask decoder in fp32 on the CPU."""
    decoder = TorchDecoder.from_parameters(parameters)
    return lambda picture, prompts: decoder.all_masks(picture, prompts)[0]

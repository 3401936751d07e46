"""The two reports on image encoders beside Meta's code: how exact they are, and how fast."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from samtrt.building.accuracy import (
    Decode,
    ErrorStatistics,
    Picture,
    decode_prompts,
    error_statistics,
    mask_ious,
    relative_l2,
    worst,
)
from samtrt.building.parity import LIMITS, fp32_decoder
from samtrt.checkpoints.parameters import Parameters
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError
from samtrt.reports.benchmarking import Timing, markdown_table, time_calls
from samtrt.reports.contestants import Contestant, meta_decoder

Announce = Callable[[str], None]

# What an output of any precision may be off and still be timed.
MAX_RELATIVE_L2 = max(limits.relative_l2 for limits in LIMITS.values())


@dataclass(frozen=True)
class Accuracy:
    """How far one encoder is from Meta's in fp32, over all pictures.

    Attributes:
        name: the encoder.
        embedding: errors of the embedding.
        mean_mask_iou, worst_mask_iou: over all pictures, prompts and masks.
    """

    name: str
    embedding: ErrorStatistics
    mean_mask_iou: float
    worst_mask_iou: float

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return asdict(self)


def record_head(
    environment: dict[str, Any], parameters: Parameters, pictures: Sequence[Picture]
) -> dict[str, Any]:
    """What every JSON record begins with: on what, of which parameters, on which pictures.

    Args:
        environment: ``benchmarking.environment()``.
    """
    return {
        "environment": environment,
        "encoder": parameters.encoder_config.to_json(),
        "parameters_sha256": parameters.sha256,
        "note": parameters.note,
        "pictures": [picture.name for picture in pictures],
    }


def measure_accuracy(
    parameters: Parameters,
    reference: Contestant,
    contestants: Sequence[Contestant],
    pictures: Sequence[Picture],
    announce: Announce = print,
) -> list[Accuracy]:
    """Compares each encoder with the reference, masks included.

    The reference's masks come from Meta's decoder, the others' from this project's.

    Args:
        announce: is told what is being run.
    """
    announce(reference.name)
    expected = _embed(reference, pictures)
    decode, metas_decode = fp32_decoder(parameters), meta_decoder(parameters)
    true = _decode(metas_decode, expected, pictures)
    rows = []
    for contestant in contestants:
        announce(contestant.name)
        embeddings = _embed(contestant, pictures)
        logits = _decode(decode, embeddings, pictures)
        ious = torch.cat(list(map(mask_ious, logits, true, pictures)))
        errors = error_statistics(torch.cat(embeddings), torch.cat(expected))
        rows.append(Accuracy(contestant.name, errors, ious.mean().item(), ious.min().item()))
    return rows


def accuracy_table(rows: Sequence[Accuracy]) -> str:
    """A Markdown table of the errors."""
    header = ["encoder", "abs max", "abs mean", "abs median", "rel max", "rel mean", "rel median"]
    header += ["rel L2", "mask IoU mean", "worst"]
    cells = []
    for row in rows:
        errors = [f"{error:.2e}" for error in asdict(row.embedding).values()]
        ious = [f"{row.mean_mask_iou:.5f}", f"{row.worst_mask_iou:.4f}"]
        cells.append([row.name, *errors, *ious])
    return markdown_table(header, cells)


@dataclass(frozen=True)
class Speed:
    """Latency and throughput of one encoder at one batch size.

    Attributes:
        name: the encoder.
        batch_size: pictures a call.
        relative_l2: of the embedding, against Meta's code in fp32: the check before the clock.
        timing: of a call, image tensor → embedding; None where the output is wrong.
    """

    name: str
    batch_size: int
    relative_l2: float
    timing: Timing | None

    @property
    def images_per_second(self) -> float | None:
        """At p50; None where the output is wrong."""
        return 1e3 * self.batch_size / self.timing.p50 if self.timing else None

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return asdict(self) | {"images_per_second": self.images_per_second}


def measure_speed(
    reference: Contestant,
    contestants: Sequence[Contestant],
    pictures: Sequence[Picture],
    batch_sizes: Sequence[int],
    runs: int,
    seconds: float,
    announce: Announce = print,
) -> list[Speed]:
    """Times each encoder at each batch size, once its output was found right.

    A peer whose output is further from the reference than ``MAX_RELATIVE_L2`` gets no time.

    Args:
        pictures: the batches rotate through them.
        runs, seconds: limits for one row; see ``time_calls``.

    Raises:
        EngineError: an output of ours is as far.
    """
    announce(reference.name)
    expected = torch.cat(_embed(reference, pictures))
    pixels = torch.cat([picture.pixels for picture in pictures])
    rows = []
    for contestant in contestants:
        encoder = contestant.make()
        inputs = pixels.to(encoder.device)
        for batch_size in batch_sizes:
            announce(f"{contestant.name}, batch {batch_size}")
            batches = [
                [(first + index) % len(pixels) for index in range(batch_size)]
                for first in range(len(pixels))
            ]
            ready = [inputs[batch].contiguous() for batch in batches]
            error = worst(
                relative_l2(encoder(x), expected[batch])
                for x, batch in zip(ready, batches, strict=True)
            )
            is_right = error <= MAX_RELATIVE_L2
            if contestant.ours and not is_right:
                raise EngineError(
                    f"{contestant.name}, batch {batch_size}: its output is wrong, {error:.2%} off "
                    f"{reference.name} (allowed: {MAX_RELATIVE_L2:.0%}); it was not timed"
                )
            timing = None
            if is_right:
                timing = time_calls(_rotating(encoder, ready), encoder.device, 1, runs, seconds)
            rows.append(Speed(contestant.name, batch_size, error, timing))
        del encoder
    return rows


def speed_table(rows: Sequence[Speed]) -> str:
    """A Markdown table of the timings; the last column compares with the first encoder's."""
    base = {row.batch_size: row.timing for row in reversed(rows) if row.name == rows[0].name}
    header = ["encoder", "batch", "p50 ms", "p90 ms", "images/s", "rel L2", "speed-up"]
    cells = []
    for row in rows:
        times = ["-", "-", "-"]
        speed_up = "wrong: not timed"
        if row.timing and row.images_per_second:
            times = [f"{row.timing.p50:,.1f}", f"{row.timing.p90:,.1f}"]
            times.append(f"{row.images_per_second:.3g}")
            reference = base[row.batch_size]
            speed_up = f"{reference.p50 / row.timing.p50:.2f}×" if reference else "-"
        cells.append([row.name, str(row.batch_size), *times, f"{row.relative_l2:.1e}", speed_up])
    return markdown_table(header, cells)


def _rotating(encoder: ImageEncoder, batches: Sequence[Tensor]) -> Callable[[int], Tensor]:
    return lambda index: encoder(batches[index % len(batches)])


def _embed(contestant: Contestant, pictures: Sequence[Picture]) -> list[Tensor]:
    """[1, 256, h, w] of each picture, on the CPU."""
    encoder = contestant.make()
    return [encoder(picture.pixels.to(encoder.device)).cpu() for picture in pictures]


@torch.inference_mode()
def _decode(
    decode: Decode, embeddings: Sequence[Tensor], pictures: Sequence[Picture]
) -> list[Tensor]:
    """Logits [P, 4, 4h, 4w] of each picture."""
    return [
        decode_prompts(decode, embedding, picture)
        for embedding, picture in zip(embeddings, pictures, strict=True)
    ]

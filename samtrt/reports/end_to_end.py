"""What a user waits for: the time from a picture in host memory to its masks in host memory."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from samtrt.errors import SamtrtError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import IMAGE_STAGES, PROMPT_STAGES, SamPredictor
from samtrt.reports.benchmarking import markdown_table
from samtrt.sam import Sam

# Below this mean IoU with the masks of a decoder in fp32 a time means nothing; none is given.
_LEAST_IOU = 0.99


@dataclass(frozen=True)
class EndToEnd:
    """Milliseconds from host memory to host memory.

    Attributes:
        image_size: (H, W) of the picture.
        mask_iou: mean IoU of the masks with those of the decoder in fp32, same pictures, prompts.
        first_p50, first_p90: picture and one point → masks.
        further_p50, further_p90: another point on the same picture → masks.
        stages: p50 of each stage, timed on the device in runs of their own.
    """

    image_size: tuple[int, int]
    mask_iou: float
    first_p50: float
    first_p90: float
    further_p50: float
    further_p90: float
    stages: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return asdict(self)


def measure_end_to_end(
    sam: Sam, image: np.ndarray, repeats: int = 50, warm_up: int = 5
) -> EndToEnd:
    """Times ``SamPredictor`` on one point, after it has checked its masks.

    Args:
        sam: the model, on the device to be measured.
        image: [H, W, 3] uint8 RGB.
        repeats: timed calls of each kind; pictures and points change from call to call.
        warm_up: calls before them.

    Raises:
        SamtrtError: the masks are not those of a mask decoder in fp32.
    """
    predictor = SamPredictor(sam)
    height, width = image.shape[:2]
    pictures = [np.roll(image, 16 * shift, axis=1) for shift in range(4)]
    fractions = np.random.default_rng(0).uniform(0.1, 0.9, size=(repeats + warm_up, 1, 2))
    points = fractions * (width, height)
    label = np.ones(1, dtype=np.int64)

    fp32 = SamPredictor(sam, decoder_precision="fp32")
    iou = _agreement(predictor, fp32, image, points[:4], label)
    if not iou >= _LEAST_IOU:
        raise SamtrtError(
            f"the predictor's masks have a mean IoU of {iou:.4f} with those of its decoder in "
            f"fp32, expected at least {_LEAST_IOU}; nothing was timed"
        )

    def first(index: int) -> None:
        predictor.set_image(pictures[index % len(pictures)])
        predictor.predict(points[index], label)

    def further(index: int) -> None:
        predictor.predict(points[index], label)

    first_times = _timed(first, repeats, warm_up)
    further_times = _timed(further, repeats, warm_up)
    stages: dict[str, list[float]] = {name: [] for name in (*IMAGE_STAGES, *PROMPT_STAGES)}
    for index in range(repeats):
        clock = StageClock(predictor.device)
        predictor.mark = clock
        first(index)
        for name, value in clock.milliseconds().items():
            stages[name].append(value)
    return EndToEnd(
        (height, width),
        iou,
        *_p50_p90(first_times),
        *_p50_p90(further_times),
        {name: float(np.median(values)) for name, values in stages.items()},
    )


def end_to_end_table(results: Mapping[str, EndToEnd]) -> str:
    """A Markdown table: who, first and further prompts, then each stage; milliseconds."""
    header = ["model", "first p50", "p90", "further p50", "p90", *IMAGE_STAGES, *PROMPT_STAGES]
    rows = []
    for name, result in results.items():
        times = [result.first_p50, result.first_p90, result.further_p50, result.further_p90]
        rows.append([name, *(f"{time:,.1f}" for time in (*times, *result.stages.values()))])
    return markdown_table(header, rows)


@dataclass(frozen=True)
class Everything:
    """Milliseconds of ``SamAutomaticMaskGenerator.generate``.

    Attributes:
        image_size: (H, W) of the picture.
        points: prompts decoded.
        masks: records returned.
        p50, p90: of the whole call, records in host memory included.
    """

    image_size: tuple[int, int]
    points: int
    masks: int
    p50: float
    p90: float

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return asdict(self)


def measure_everything(
    generator: SamAutomaticMaskGenerator, image: np.ndarray, repeats: int = 5, warm_up: int = 1
) -> Everything:
    """Times automatic masks of one picture, [H, W, 3] uint8 RGB."""
    found = 0

    def generate(_: int) -> None:
        nonlocal found
        found = len(generator.generate(image))

    times = _timed(generate, repeats, warm_up)
    points = len(generator.point_grids[0])
    return Everything((image.shape[0], image.shape[1]), points, found, *_p50_p90(times))


def _agreement(
    predictor: SamPredictor,
    reference: SamPredictor,
    image: np.ndarray,
    points: np.ndarray,
    label: np.ndarray,
) -> float:
    """Mean IoU of the masks of both; two empty masks agree."""
    predictor.set_image(image)
    reference.set_image(image)
    ious = []
    for point in points:
        masks, _, _ = predictor.predict(point, label)
        expected, _, _ = reference.predict(point, label)
        intersection = (masks & expected).sum(axis=(1, 2))
        union = (masks | expected).sum(axis=(1, 2))
        ious.append(np.where(union == 0, 1.0, intersection / np.maximum(union, 1)))
    return float(np.mean(ious))


def _timed(call: Callable[[int], None], repeats: int, warm_up: int) -> list[float]:
    """Wall milliseconds of each call; every call ends with its result in host memory."""
    times = []
    for index in range(warm_up + repeats):
        start = time.perf_counter()
        call(index)
        times.append(1e3 * (time.perf_counter() - start))
    return times[warm_up:]


def _p50_p90(times: list[float]) -> tuple[float, float]:
    return float(np.percentile(times, 50)), float(np.percentile(times, 90))


class StageClock:
    """Milliseconds of each stage between ``start`` and the last mark, on the stage's own device.

    On a GPU the stages are timed by events in the stream, so that what overlaps with the host is
    not counted twice.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self("start")

    def __call__(self, stage: str) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """Each stage's time; on a GPU, waits for the last one."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        times = {}
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                times[stage] = before.elapsed_time(after)
            elif isinstance(before, float) and isinstance(after, float):
                times[stage] = 1e3 * (after - before)
        return times

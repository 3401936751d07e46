"""An FP8 encoder's scales, its rounded weights, and which of its linear layers stay in fp16."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from samtrt.building.accuracy import Picture
from samtrt.building.parity import Comparison, Limits, verdict
from samtrt.checkpoints.parameters import Parameters
from samtrt.console import progress_steps
from samtrt.encoders.cuda.calibration import calibrated_plan, sensitivities
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.quantisation import (
    Fp8Plan,
    LinearName,
    all_linears,
    in_order,
    name_of,
    parse_linears,
)
from samtrt.encoders.engine import PASSED, Fp8Record
from samtrt.errors import EngineError, InputError

AUTOMATIC = "auto"
NONE = "none"
_MEASURED = 4  # pictures that a linear's cost is measured on
_STRICTER = 0.95  # of the gate's distances, allowed here: it judges the kernels
_STEPS = 16  # in so many more linears go back to fp16 where the gate is not passed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrated:
    """An FP8 encoder that has yet to pass the gate.

    Attributes:
        plan: scales, and weights of all linears.
        record: for the sidecar, with the linears that ``plan`` leaves in fp16.
    """

    plan: Fp8Plan
    record: Fp8Record


def kept_linears(text: str, parameters: Parameters) -> frozenset[LinearName] | None:
    """What ``--fp8-keep`` names: blocks or linears with commas between them; None for ``auto``.

    Raises:
        InputError: there is no such block or linear, or nothing would be left for FP8.
    """
    if text == AUTOMATIC:
        return None
    config = parameters.encoder_config
    kept = parse_linears([] if text == NONE else text.split(","), config)
    if kept == all_linears(config):
        raise InputError(f"--fp8-keep {text} leaves no linear layer for FP8; take --precision fp16")
    return kept


def calibrations(
    parameters: Parameters,
    pictures: Sequence[Picture],
    judged: Sequence[Picture],
    keep: frozenset[LinearName] | None,
    limits: Limits,
    device: torch.device | str,
) -> Iterator[Calibrated]:
    """What to try, in this order, until one passes the gate.

    Where ``keep`` is None, each linear's cost in accuracy is measured on a reference in torch, and
    of those that cost most for the arithmetic that they save, as few stay in fp16 as the limits
    allow; then more, step by step.

    Args:
        pictures: to calibrate on and to measure the cost of linears on, at least one.
        judged: that the limits are held against: the gate's. (The weights are rounded for those
            that they are calibrated on, which are off by less.)
        keep: linears in fp16; None for those that have to be.
        limits: the gate's.
        device: where everything is computed, in fp32.
    """
    config, tensors = parameters.encoder_config, parameters.encoder()
    pixels = [picture.pixels for picture in pictures]
    count = len(all_linears(config))
    digest = hashlib.sha256()
    for each in pixels:
        digest.update(each.numpy().tobytes())
    with progress_steps(len(pixels) + config.depth) as announce:
        plan = calibrated_plan(config, tensors, pixels, device, announce)
    record = Fp8Record(count, (), keep is None, digest.hexdigest())
    if keep is not None:
        yield _keeping(plan, record, keep)
        return
    encoder = Fp8Reference(config, tensors, device=device)
    with progress_steps(config.depth) as announce:
        errors = sensitivities(encoder, plan, pixels[:_MEASURED], announce)
    record = replace(record, errors={name_of(each): errors[each] for each in in_order(errors)})
    order = _by_cost(plan, errors)
    holds = _judge(parameters, encoder, plan, judged, limits)
    fewest = _fewest(count, lambda number: holds(frozenset(order[:number])))
    for number in range(fewest, count, max(1, count // _STEPS)):
        yield _keeping(plan, record, frozenset(order[:number]))
    raise EngineError(
        "no linear layer of this encoder can be in FP8 and pass the parity gate; take --precision "
        "fp16, or calibrate on pictures of your own kind with --calibrate"
    )


def _keeping(plan: Fp8Plan, record: Fp8Record, kept: frozenset[LinearName]) -> Calibrated:
    names = tuple(name_of(linear) for linear in in_order(kept))
    chosen = Calibrated(plan.only(plan.linears - kept), replace(record, fp16_linears=names))
    logger.info("fp8: %s", chosen.record)
    return chosen


def _by_cost(plan: Fp8Plan, errors: dict[LinearName, float]) -> list[LinearName]:
    """First what adds most to the squared error for each product that it saves."""

    def cost(linear: LinearName) -> float:
        return errors[linear] ** 2 / plan.packed[linear].weight.numel()

    return sorted(in_order(errors), key=cost, reverse=True)


def _judge(
    parameters: Parameters,
    encoder: Fp8Reference,
    plan: Fp8Plan,
    pictures: Sequence[Picture],
    limits: Limits,
) -> Callable[[frozenset[LinearName]], bool]:
    """Whether the reference holds the limits, made stricter, with these linears in fp16."""
    strict = Limits(
        _STRICTER * limits.relative_l2,
        1 - _STRICTER * (1 - limits.mean_mask_iou),
        1 - _STRICTER * (1 - limits.worst_mask_iou),
    )
    comparison = Comparison(parameters, encoder)
    encoder.plan, encoder.stream = None, torch.float32
    with torch.inference_mode():
        expected = [comparison.expect(picture) for picture in pictures]
    encoder.stream = torch.float16

    def holds(kept: frozenset[LinearName]) -> bool:
        encoder.plan = plan.only(plan.linears - kept)
        with torch.inference_mode():
            differences = [
                comparison.difference(encoder(each.picture.pixels.to(encoder.device)), each)
                for each in expected
            ]
        return verdict(differences, strict, len(expected)).status == PASSED

    return holds


def _fewest(count: int, holds: Callable[[int], bool]) -> int:
    """The least number that holds, taken to be one from which on all do; ``count`` if none does."""
    low, high = 0, count
    with progress_steps(count.bit_length()) as announce:
        while low < high:
            middle = (low + high) // 2
            announce(f"masks with {middle} of {count} linear layers in fp16")
            if holds(middle):
                high = middle
            else:
                low = middle + 1
    return low

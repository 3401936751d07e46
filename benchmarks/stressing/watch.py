"""Calls whose outputs are checked once and must never change by a bit."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS = 4  # outputs written one after the other, before they are compared
ATTEMPTS = 3  # to get a first output that is correct
# Where set, torch keeps no memory, so that a sanitizer sees what is accessed beyond a tensor;
# graphs cannot be recorded then.
NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
E4M3 = torch.float8_e4m3fn
E4M3_LIMIT = 0.05  # relative L2 of its rounding, with what lies below its range


@dataclass
class Case:
    """One piece of work.

    Attributes:
        name: what it is, with its sizes.
        initial: what the outputs hold before a call: NaN, or what is added to.
        launch: writes outputs like ``initial``.
        expected: the outputs in float64.
        limit: of their relative L2 difference from these, e4m3 apart.
    """

    name: str
    initial: list[Tensor]
    launch: Callable[[Sequence[Tensor]], object]
    expected: list[Tensor]
    limit: float


class NoCorrectOutputError(Exception):
    """Not one of the first outputs was near float64's."""


def relative_l2(output: Tensor, expected: Tensor) -> float:
    difference = (output.double() - expected).norm() / expected.norm().clamp_min(1e-300)
    return float(difference)


def bits(tensor: Tensor) -> Tensor:
    """NaNs, too, compare as they are."""
    return tensor.contiguous().view(BITS[tensor.element_size()])


class Watched:
    """A case's calls, on a GPU as one CUDA graph of ``SLOTS`` calls and their comparison.

    Attributes:
        weight: how often it is called, relative to others.
        calls: made so far, the first ones among them.
        wrong: of the first ones, those that were not near float64's.
    """

    def __init__(self, case: Case) -> None:
        """
        Raises:
            NoCorrectOutputError: the kernel computes something else.
        """
        self.case = case
        self.weight = 1.0
        self.calls = self.wrong = 0
        device = case.initial[0].device
        self.slots = [[torch.empty_like(t) for t in case.initial] for _ in range(SLOTS)]
        self._first = self._first_correct()
        case.expected.clear()  # float64 takes four times the memory
        self._differing = torch.zeros((), dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda" and not os.environ.get(NO_CACHING):
            self._run()
            self.calls += SLOTS
            torch.cuda.synchronize(device)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._run()

    def _first_correct(self) -> list[Tensor]:
        errors = []
        for _ in range(ATTEMPTS):
            self._reset(self.slots[0])
            self.case.launch(self.slots[0])
            self.calls += 1
            pairs = zip(self.slots[0], self.case.expected, strict=True)
            errors.append(max(self._badness(*pair) for pair in pairs))
            if errors[-1] <= 1:  # (not of NaN)
                self.wrong = len(errors) - 1
                return [output.clone() for output in self.slots[0]]
        shown = ", ".join(f"{error * self.case.limit:.1e}" for error in errors)
        raise NoCorrectOutputError(
            f"{self.case.name}: relative L2 {shown} against float64, not within {self.case.limit:g}"
        )

    def _badness(self, output: Tensor, expected: Tensor) -> float:
        """The error in units of what it may be."""
        return relative_l2(output, expected) / (
            E4M3_LIMIT if output.dtype == E4M3 else self.case.limit
        )

    def _reset(self, slot: Sequence[Tensor]) -> None:
        for output, initial in zip(slot, self.case.initial, strict=True):
            output.copy_(initial)

    def _run(self) -> None:
        for slot in self.slots:
            self._reset(slot)
        for slot in self.slots:
            self.case.launch(slot)
        for slot in self.slots:
            unequal = [
                (bits(output) != bits(first)).any()
                for output, first in zip(slot, self._first, strict=True)
            ]
            self._differing += torch.stack(unequal).any()

    def call(self) -> None:
        """``SLOTS`` calls; does not wait for them."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        self.calls += SLOTS

    def what_differs(self) -> str:
        """Of the last calls: where, by how much, and whether something was not written at all."""
        found = []
        for number, slot in enumerate(self.slots):
            for index, (output, first) in enumerate(zip(slot, self._first, strict=True)):
                places = (bits(output) != bits(first)).nonzero()
                if len(places):
                    low, high = places.amin(0).tolist(), places.amax(0).tolist()
                    values = output.float()
                    missing = int(values.isnan().sum())
                    error = relative_l2(values.nan_to_num(), first.double())
                    found.append(
                        f"call {number} output {index}: {len(places)} elements within {low} … "
                        f"{high}, {missing} NaN, relative L2 {error:.1e}"
                    )
        return f"{self.case.name}: {'; '.join(found) or 'written over since'}"

    @property
    def differing(self) -> int:
        """Calls so far whose output was not the first correct one; waits for them."""
        return self.wrong + int(self._differing)

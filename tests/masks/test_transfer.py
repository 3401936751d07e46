"""Masks into host memory: in which parts, and after which events; torch's calls are made up."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from samtrt.masks import transfer
from samtrt.masks.transfer import to_host

MASKS = torch.rand(3, 700, 900, generator=torch.Generator().manual_seed(0)) > 0.5
SCORES = torch.tensor([0.5, 0.25, 0.75])
LOGITS = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many transfers had been queued at each event, in order."""
    queued = 0
    at_event: list[int] = []
    copy = torch.Tensor.copy_

    def counting(self: Any, source: Any, non_blocking: bool = False) -> Any:
        nonlocal queued
        queued += non_blocking
        return copy(self, source)

    class Event:
        def record(self, stream: str) -> None:
            assert stream == "the current one"
            at_event.append(queued)

    empty = torch.empty
    monkeypatch.setattr(torch.Tensor, "copy_", counting)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **rest: empty(*size, **rest))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the current one")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return at_event


@pytest.mark.parametrize("part", [1 << 10, 100_000, 1 << 20, 1 << 30])
def test_every_byte_is_in_its_place_after_its_event(
    part: int, events: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PART_BYTES", part)
    given = (MASKS, SCORES, MASKS[:0], LOGITS, MASKS.transpose(1, 2))
    targets = [torch.full_like(x, 1).contiguous() for x in given]
    under_way = transfer._start(
        [(transfer._bytes(x), transfer._bytes(y)) for x, y in zip(given, targets, strict=True)]
    )
    counts = [len(parts) for _, parts in under_way]
    assert events == list(np.cumsum(counts))
    total = sum(x.nbytes for x in given)
    assert len(under_way) <= 1 + total // part
    for _, parts in under_way:
        for locked, target in parts:
            assert len(target) <= part
            target.copy_(locked)
    for found, expected in zip(targets, given, strict=True):
        assert torch.equal(found, expected)


class Arrival:
    """An event that is not there for so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.waited = False

    def query(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def synchronize(self) -> None:
        self.waited = True


@pytest.mark.parametrize(
    "looks", [[0, 0, 0], [1, 0, 2], [0, 1, 9], [0, 9, 0], [2, 2, 2], [9, 9, 9]]
)
def test_pages_are_mapped_before_their_bytes_are_there_and_never_after(looks: list[int]) -> None:
    locked = [torch.full((4,), value, dtype=torch.uint8) for value in (1, 2, 3, 4)]
    targets = [torch.full((4,), 77, dtype=torch.uint8) for _ in locked]
    pairs = list(zip(locked, targets, strict=True))
    events: list[Any] = [Arrival(count) for count in looks]
    transfer._copy_out(list(zip(events, (pairs[:2], pairs[2:3], pairs[3:]), strict=True)))
    assert all(event.waited for event in events)
    for own, found in pairs:
        assert torch.equal(found, own)


def test_nothing_is_transferred_without_a_byte(events: list[int]) -> None:
    (_, parts), *others = transfer._start([(transfer._bytes(MASKS[:0]),) * 2])
    assert sum(len(locked) for locked, _ in parts) == 0 and not others


def test_on_the_cpu_it_is_a_copy() -> None:
    found = to_host(MASKS.transpose(1, 2), SCORES, LOGITS[:0])
    for array, tensor in zip(found, (MASKS.transpose(1, 2), SCORES, LOGITS[:0]), strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())
        assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
    assert to_host() == ()

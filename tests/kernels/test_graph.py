"""How a graph is recorded, in order; with torch's calls made up where there is no GPU."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from samtrt.kernels import graph
from samtrt.kernels.graph import ATTEMPTS, GraphedWork

DEVICE = torch.device("cuda", 1)
VOID = "CUDA error: operation failed due to a previous error during capture"


class Recorder:
    """torch.cuda's part, and the log of what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, voided: int = 0) -> None:
        self.log: list[str] = []
        self.voided = voided
        recorder = self

        class Graph:
            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                recorder.log.append(f"begin {pool} {capture_error_mode}")

            def capture_end(self) -> None:
                recorder.log.append("end")
                if recorder.voided:
                    recorder.voided -= 1
                    raise RuntimeError(f"{VOID}\nCompile with…")

            def replay(self) -> None:
                recorder.log.append("replay")

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                recorder.log.append(f"{self.name} waits for {other.name}")

        def inside(kind: str) -> Callable[[Any], contextlib.AbstractContextManager[None]]:
            return lambda what: contextlib.nullcontext(self.log.append(f"{kind} {what}"))

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("caller"))
        monkeypatch.setattr(torch.cuda, "device", inside("device"))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: DEVICE.index)
        monkeypatch.setattr(
            torch.cuda, "stream", lambda stream: contextlib.nullcontext(self.log.append("on side"))
        )
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "own")
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(
                torch._C,
                name,
                lambda index, pool, name=name: self.log.append(f"{name} {index} {pool}"),
                raising=False,
            )
        monkeypatch.setattr(graph, "_voided", [])
        monkeypatch.setattr(graph, "_stream", lambda index: Stream())

    def run(self) -> str:
        self.log.append("run")
        return "result"


def test_it_is_recorded_on_a_stream_of_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    work: GraphedWork[object] = GraphedWork(DEVICE)
    assert not work.is_recorded
    assert work(recorder.run) == "result" and work.is_recorded
    assert recorder.log == [
        "device cuda:1",
        "side waits for caller",
        "on side",
        *("run", "begin own thread_local", "run", "end"),
        "caller waits for side",
        "replay",
    ]
    recorder.log.clear()
    assert work(recorder.run) == "result"
    assert recorder.log == ["replay"]  # which torch does on the graph's own device


def test_a_voided_recording_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, voided=1)
    assert GraphedWork(DEVICE, pool="shared")(recorder.run) == "result"
    again = ["begin shared thread_local", "run", "end"]
    ended = ["_cuda_endAllocateToPool 1 shared", "_cuda_releasePool 1 shared"]
    assert recorder.log[3:-2] == ["run", *again, *ended, *again]


def test_without_luck_it_is_queued_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, voided=ATTEMPTS)
    work: GraphedWork[object] = GraphedWork(DEVICE)
    assert work(recorder.run) == "result" and not work.is_recorded
    assert recorder.log[-2:] == ["caller waits for side", "run"]
    assert recorder.log.count("run") == 1 + ATTEMPTS + 1
    assert len(graph._voided) == ATTEMPTS
    assert work(recorder.run) == "result" and work.is_recorded


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt()])
@pytest.mark.parametrize("voided", [0, 1])
def test_an_error_of_what_is_recorded_is_its_own(
    error: BaseException, voided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the recording has ended: the next one works."""
    recorder = Recorder(monkeypatch, voided)
    runs = []

    def run() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise error

    work: GraphedWork[object] = GraphedWork(DEVICE)
    if voided and isinstance(error, Exception):
        work(run)  # it came of the voiding
    else:
        with pytest.raises(type(error)):
            work(run)
    assert gc.isenabled()
    assert recorder.log.count("end") == sum(line.startswith("begin") for line in recorder.log)
    work(run)
    assert work.is_recorded


@pytest.mark.parametrize("voided", [0, ATTEMPTS])
def test_nothing_keeps_the_work_alive(voided: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even until the garbage is collected: it holds a GPU's memory."""
    recorder = Recorder(monkeypatch, voided)

    class Owner:
        def run(self) -> None:
            if recorder.voided and recorder.log.count("run"):
                raise RuntimeError(VOID)
            recorder.run()

    owner = Owner()
    seen = weakref.ref(owner)
    work: GraphedWork[object] = GraphedWork(DEVICE)
    gc.disable()
    try:
        work(owner.run)
        del work, owner
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_no_other_stream_is_the_recorded_one() -> None:
    """Whoever takes streams from torch meanwhile, more than its pool has, has them for himself."""
    device = torch.device("cuda", torch.cuda.current_device())
    own, others = torch.zeros(1, device=device), torch.zeros(80, 1, device=device)
    torch.cuda.synchronize()
    runs = 0

    def elsewhere() -> None:
        with torch.cuda.device(device):
            for other in others:
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    other.add_(1)
                stream.synchronize()

    def run() -> None:
        nonlocal runs
        runs += 1
        own.add_(1)
        if runs == 2:  # is recorded
            with ThreadPoolExecutor(1) as thread:
                thread.submit(elsewhere).result()

    work: GraphedWork[None] = GraphedWork(device)
    for _ in range(3):
        work(run)
    assert work.is_recorded and runs == 2
    torch.cuda.synchronize()
    assert own.item() == 1 + 3
    assert torch.equal(others, torch.ones_like(others))

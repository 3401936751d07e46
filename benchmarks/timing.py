"""Times on the GPU, by CUDA events, under two protocols that are told apart.

A large GPU under load reaches its power limit within some ten milliseconds, and its clocks fall. So
a call has two times: ``single``, on a GPU that has rested, and ``sustained``, in an endless loop.
"""

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from samtrt.reports.benchmarking import Timing

PAUSE = 0.030  # seconds of rest, after which the clocks are back at their highest
HEAT = 2.0  # seconds of load, after which clocks and power have settled
AHEAD = 3  # calls queued while one runs: the GPU never waits, the host never runs away
LEAST_RUNS = 12
# Cycles, 0.8 ms: the queue fills meanwhile, so no launch is waited for. (The host takes some 0.3 ms
# to launch a graph of 160 kernels with programmatic edges.)
SPIN = 1_500_000
PROTOCOLS = {
    "single": f"a call on a GPU that has rested for {PAUSE * 1e3:.0f} ms",
    "sustained": f"back to back, after {HEAT:g} s of the same load",
}

Call = Callable[[], object]


@dataclass(frozen=True)
class Condition:
    """Of the GPU under load, medians of samples; None where ``nvidia-smi`` does not answer."""

    sm_clock_mhz: float | None = None
    power_w: float | None = None


class Monitor:
    """Samples clock and power in the background, by a process of its own."""

    FIELDS = "clocks.sm,power.draw"
    INTERVAL_MS = 50

    def __init__(self, gpu: str) -> None:
        """
        Args:
            gpu: its number or identifier, as ``nvidia-smi -i`` takes it.
        """
        # (a line at a time: what waits in a buffer is lost when the process ends)
        command = ["stdbuf", "-oL", "nvidia-smi", "-i", gpu, f"--query-gpu={self.FIELDS}"]
        command += ["--format=csv,noheader,nounits", "-lms", str(self.INTERVAL_MS)]
        self._lines: list[tuple[float, str]] = []
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append((time.perf_counter(), line))

    def stop(self, since: float) -> Condition:
        """Ends the process; what it saw since that ``time.perf_counter()``."""
        if self._process is None:
            return Condition()
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        return condition([line for moment, line in self._lines if moment >= since])


def condition(lines: Sequence[str]) -> Condition:
    """From lines of ``clock, power``; lines that say something else are left out."""
    samples = []
    for line in lines:
        try:
            clock, power = map(float, line.split(","))
        except ValueError:
            continue
        samples.append((clock, power))
    if not samples:
        return Condition()
    clocks, powers = (sorted(column) for column in zip(*samples, strict=True))
    return Condition(clocks[len(clocks) // 2], powers[len(powers) // 2])


def measure(calls: Sequence[Call], runs: int, seconds: float) -> dict[str, dict[str, object]]:
    """Both protocols, ``calls`` in turn: protocol → p50, p90 and best in ms, runs, condition.

    Args:
        runs: calls timed under each protocol.
        seconds: after so long no further call is timed, once there are ``LEAST_RUNS``.
    """
    result: dict[str, dict[str, object]] = {}
    result["single"] = _entry(single_milliseconds(calls, runs, seconds))
    monitor = Monitor(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    times, since = sustained_milliseconds(calls, runs, seconds)
    result["sustained"] = _entry(times) | asdict(monitor.stop(since))
    return result


def _entry(milliseconds: Sequence[float]) -> dict[str, object]:
    timing = Timing.of(milliseconds)
    return {
        "p50_ms": timing.p50,
        "p90_ms": timing.p90,
        "best_ms": timing.best,
        "runs": timing.runs,
    }


def single_milliseconds(
    calls: Sequence[Call], runs: int, seconds: float = float("inf"), warmup: int = 6
) -> list[float]:
    """The time of each call on a rested GPU."""
    for i in range(warmup):
        calls[i % len(calls)]()
    torch.cuda.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while _goes_on(len(times), runs, begin, seconds):
        time.sleep(PAUSE)
        torch.cuda._sleep(SPIN)
        start, stop = _events()
        start.record()
        calls[len(times) % len(calls)]()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return times


def sustained_milliseconds(
    calls: Sequence[Call], runs: int, seconds: float = float("inf"), heat: float = HEAT
) -> tuple[list[float], float]:
    """The time of each call under load, and the ``time.perf_counter()`` at which timing began."""
    queue: deque[torch.cuda.Event] = deque()
    timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def enqueue(index: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, stop = _events()
        start.record()
        calls[index % len(calls)]()
        stop.record()
        queue.append(stop)
        if len(queue) > AHEAD:
            queue.popleft().synchronize()
        return start, stop

    begin = time.perf_counter()
    index = 0
    while index == 0 or time.perf_counter() - begin < heat:
        enqueue(index)
        index += 1
    since = time.perf_counter()
    while _goes_on(len(timed), runs, since, seconds):
        timed.append(enqueue(index))
        index += 1
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in timed], since


def _goes_on(done: int, runs: int, begin: float, seconds: float) -> bool:
    return done < runs and (done < LEAST_RUNS or time.perf_counter() - begin < seconds)


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def graph_microseconds(calls: Sequence[Callable[[], None]], repeats: int = 10) -> float:
    """Median time of one call, in microseconds, on a rested GPU.

    Args:
        calls: the same work on different buffers, together larger than the L2 cache; they are
            captured into one graph, so that no launch gap is measured. One replay should take
            a millisecond or two: with ``repeats`` of them the power limit is not yet reached.
        repeats: replays, after one rest.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    time.sleep(PAUSE)
    times = event_milliseconds([graph.replay], repeats, warmup=1)
    return sorted(times)[len(times) // 2] * 1000 / len(calls)


def event_milliseconds(calls: Sequence[Call], repeats: int, warmup: int) -> list[float]:
    """Times of ``repeats`` calls without a pause, each between two CUDA events."""
    for i in range(warmup):
        calls[i % len(calls)]()
    events = [_events() for _ in range(repeats)]
    for i, (start, stop) in enumerate(events):
        start.record()
        calls[i % len(calls)]()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in events]

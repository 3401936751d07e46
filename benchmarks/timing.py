"""Times on the GPU: graph replays over rotated buffers, CUDA events, medians."""

from collections.abc import Callable

import torch


def graph_microseconds(calls: list[Callable[[], None]], repeats: int = 20) -> float:
    """Median time of one call, in microseconds.

    Args:
        calls: the same work on different buffers, together larger than the L2 cache; they are
            captured into one graph, so that no launch gap is measured.
        repeats: replays.
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
    times = event_milliseconds([graph.replay], repeats, warmup=3)
    return sorted(times)[len(times) // 2] * 1000 / len(calls)


def event_milliseconds(
    calls: list[Callable[[], object]], repeats: int, warmup: int = 5
) -> list[float]:
    """Times of ``repeats`` calls, each between two CUDA events, taking ``calls`` in turn."""
    for i in range(warmup):
        calls[i % len(calls)]()
    torch.cuda.synchronize()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for i, (start, stop) in enumerate(events):
        start.record()
        calls[i % len(calls)]()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in events]

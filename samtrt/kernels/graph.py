"""CUDA graphs: what a function queues, recorded once to be replayed.

Other threads may work on the same GPU meanwhile. What they do to torch's allocator concerns their
own streams; but CUDA makes a recording void when anybody waits for the whole device, and so does
``torch.cuda.graph`` itself before it records. Hence one recording at a time in a process, without
that wait, and again when somebody else's wait has voided it.
"""

import contextlib
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from samtrt.errors import EngineError

ATTEMPTS = 5
_Result = TypeVar("_Result")
_one_at_a_time = threading.Lock()
logger = logging.getLogger(__name__)


def record_graph(
    run: Callable[[], _Result],
    device: torch.device,
    pool: Any | None = None,
    warm_ups: int = 1,
) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """Runs ``run`` and then records it, after the work on the device's current stream.

    Args:
        run: queues work on the current stream of ``device``, the same whenever it is called, and
            does not wait for it.
        device: a GPU, with its index.
        pool: ``torch.cuda.graph_pool_handle()``, to share memory with graphs that are never
            replayed at the same time; None for memory of its own, freed with the graph.
        warm_ups: calls before the recorded one: libraries load, compile and allocate in them.

    Returns:
        The graph, and what the recorded call returned: tensors that each replay writes.

    Raises:
        EngineError: the recording was voided again and again.
    """
    with _one_at_a_time, torch.cuda.device(device):
        caller = torch.cuda.current_stream()
        stream = torch.cuda.Stream()  # torch's own would be on the first GPU that recorded
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            for _ in range(warm_ups):
                run()
            for attempt in range(1, ATTEMPTS + 1):
                gc.collect()  # what is freed in a recording might void it
                try:
                    recorded = _record(run, pool)
                    break
                except RuntimeError as error:
                    reason = str(error).splitlines()[0]
                    if "captur" not in reason.lower():
                        raise
                    logger.info("CUDA graph, attempt %d: %s", attempt, reason)
            else:
                raise EngineError(
                    f"CUDA voided the recording of a graph {ATTEMPTS} times ({reason}): other "
                    "threads wait for the whole device meanwhile; call once before they start"
                )
        caller.wait_stream(stream)
    return recorded


def _record(run: Callable[[], _Result], pool: Any | None) -> tuple[torch.cuda.CUDAGraph, _Result]:
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads may allocate and wait for their own streams.
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        result = run()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # run's own error says more
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, result

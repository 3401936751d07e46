"""Work that is queued by hand once, recorded, and replayed as a CUDA graph from then on.

Other threads may allocate, launch and wait for their streams on the same GPU meanwhile. But a
recording is void when anybody waits for the whole device (``torch.cuda.synchronize``, which
``torch.cuda.graph`` itself does before it records), and that call raises as well, as
``torch.cuda.empty_cache`` does and, in torch 2.11, a draw from the GPU's default generator: CUDA's
and torch's rules for any recording. So there is one at a time in a process, without that wait, and
where it was voided the work is queued by hand.
"""

import ctypes
import gc
import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import torch

from samtrt.errors import EngineError

ATTEMPTS = 3  # in a row
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream
_Result = TypeVar("_Result")
_one_at_a_time = threading.Lock()
# torch's allocators go on asking a voided graph whether an allocation is its own.
_voided: list[torch.cuda.CUDAGraph] = []
logger = logging.getLogger(__name__)


class GraphedWork(Generic[_Result]):
    """Work on a GPU; calls queue it on the device's current stream, one call at a time.

    Args:
        device: the GPU, with its index.
        pool: ``torch.cuda.graph_pool_handle()``, to share memory with graphs that are never
            replayed at the same time; None for memory of its own, given back with the object.
    """

    def __init__(self, device: torch.device, pool: Any | None = None) -> None:
        self._device, self._pool = device, pool
        self._recorded: tuple[torch.cuda.CUDAGraph, _Result] | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether the next call replays a graph."""
        return self._recorded is not None

    def __call__(self, run: Callable[[], _Result]) -> _Result:
        """What ``run`` returned: tensors that the next call may write again.

        Args:
            run: queues the work on the current stream and does not wait for it; the same work in
                every call. (Not kept: it mostly belongs to who keeps this.)
        """
        if self._recorded is None:
            with torch.cuda.device(self._device):
                self._recorded = _recording(run, self._pool)
                if self._recorded is None:
                    return run()
        graph, result = self._recorded
        graph.replay()  # on its own device, whichever is the current one
        return result


class _VoidedError(Exception):
    pass


def _recording(
    run: Callable[[], _Result], pool: Any | None
) -> tuple[torch.cuda.CUDAGraph, _Result] | None:
    """The work as a graph, on the current device; None where others voided it each time."""
    with _one_at_a_time:
        caller = torch.cuda.current_stream()
        stream = _stream(torch.cuda.current_device())
        stream.wait_stream(caller)
        collects = gc.isenabled()
        try:
            with torch.cuda.stream(stream):
                run()  # libraries load, compile and allocate in their first calls
                gc.collect()
                gc.disable()  # what is freed in a recording might void it
                for _ in range(ATTEMPTS):
                    try:
                        return _record(run, pool)
                    except _VoidedError as error:
                        logger.info("CUDA graph not recorded: %s", str(error))
        finally:
            if collects:
                gc.enable()
            caller.wait_stream(stream)
    return None


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """Of the current device, for all its recordings: torch keeps cuBLAS's memory for each stream.

    Nobody else has it. Torch's own come from a pool of 32 a GPU, whose streams it hands out again
    and again: what another thread queues on one would become part of the recording.
    """
    torch.cuda.current_stream().synchronize()  # makes torch's context the current one
    made = ctypes.c_void_p()
    status = ctypes.CDLL("libcuda.so.1").cuStreamCreate(ctypes.byref(made), _NON_BLOCKING)
    if status != 0:
        raise EngineError(f"CUDA: cuStreamCreate failed: error {status}")
    return torch.cuda.ExternalStream(made.value, device)


def _record(run: Callable[[], _Result], pool: Any | None) -> tuple[torch.cuda.CUDAGraph, _Result]:
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    failure: BaseException | None = None
    # thread_local: other threads may do what the recording one may not.
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        try:
            result = run()
        except BaseException as error:
            failure = error
        try:
            graph.capture_end()
        except RuntimeError as error:
            _forget(graph, pool)
            if failure is None or isinstance(failure, Exception):
                raise _VoidedError(str(failure or error).split("\n")[0]) from None
        if failure is not None:
            raise failure
        return graph, result
    finally:
        failure = None  # (its traceback has this frame)


def _forget(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Ends what ``capture_end`` leaves open when it raises: the allocator would believe that a
    recording went on for ever, and give no memory back."""
    _voided.append(graph)
    device = torch.cuda.current_device()
    torch._C._cuda_endAllocateToPool(device, pool)
    torch._C._cuda_releasePool(device, pool)

"""What only a GPU shows: memory that comes back, streams in disorder, recordings in company."""

import contextlib
import gc
import logging
import threading
from collections.abc import Callable

import pytest
import torch
from test_callers import make_cuda, make_hopper, pictures
from triton_kernels import DEVICE, ON_GPU

from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU")]

MAKERS = pytest.mark.parametrize("make", [make_cuda, make_hopper], ids=["portable", "hopper"])


def allocated() -> tuple[int, int]:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


@MAKERS
def test_a_deleted_encoder_gives_its_memory_back(make: Callable[[], ImageEncoder]) -> None:
    def use() -> None:
        encoder = make()
        encoder(pictures(encoder))
        encoder(pictures(encoder, 2))
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() > before[0]

    before = 0, 0
    use()  # modules are loaded, libraries have their own
    before = allocated()
    for _ in range(3):
        use()
    assert allocated() == before


@MAKERS
def test_a_call_waits_for_the_last_one_on_another_stream(make: Callable[[], ImageEncoder]) -> None:
    encoder = make()
    first, second = pictures(encoder, 2).split(1)
    expected = encoder(first), encoder(second)
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(50):
        with torch.cuda.stream(streams[0]):
            torch.cuda._sleep(300_000)  # cycles: this call's copies come late
            one = encoder(first)
        with torch.cuda.stream(streams[1]):
            other = encoder(second)
        torch.cuda.synchronize()
        assert torch.equal(one, expected[0]) and torch.equal(other, expected[1])


@MAKERS
def test_an_encoder_may_go_while_its_last_call_runs(make: Callable[[], ImageEncoder]) -> None:
    reference = make()
    x = pictures(reference)
    expected = reference(x)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(5):
        encoder = make()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            encoder(x)
            torch.cuda._sleep(20_000_000)
            output = encoder(x)
        del encoder
        # What takes its memory writes to it at once.
        rubbish = [torch.full((1 << size,), 1e4, device=DEVICE) for size in range(8, 22)]
        stream.synchronize()
        assert torch.equal(output, expected)
        del rubbish


@MAKERS
def test_first_calls_among_other_threads_work(make: Callable[[], ImageEncoder]) -> None:
    """Others allocate, launch and wait for their streams in the meantime, undisturbed."""
    reference = make()
    x = pictures(reference)
    expected = reference(x)
    torch.cuda.synchronize()
    stop = threading.Event()
    problems: list[object] = []

    def other() -> None:
        try:
            generator = torch.Generator(DEVICE)  # (a recording may have the default one)
            with torch.cuda.stream(torch.cuda.Stream()):
                size = 1
                while not stop.is_set():
                    size = size % 4000 + 1  # new sizes: memory comes from the driver
                    numbers = torch.randn(size << 10, device=DEVICE, generator=generator)
                    assert float(numbers.abs().max()) < 8
        except BaseException as error:
            problems.append(error)

    def first_calls() -> None:
        try:
            for _ in range(4):
                with torch.cuda.stream(torch.cuda.Stream()):
                    if not torch.equal(make()(x), expected):
                        problems.append("wrong")
        except BaseException as error:
            problems.append(error)

    others = [threading.Thread(target=other) for _ in range(2)]
    callers = [threading.Thread(target=first_calls) for _ in range(2)]
    for thread in others + callers:
        thread.start()
    for thread in callers:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert not problems


@MAKERS
def test_a_recording_that_is_voided_costs_nothing_but_time(
    make: Callable[[], ImageEncoder], caplog: pytest.LogCaptureFixture
) -> None:
    """By a thread that waits for the whole device, which CUDA does not allow in the meantime."""
    reference = make()
    x = pictures(reference)
    expected = reference(x)
    before = allocated()
    stop = threading.Event()

    def wait() -> None:
        while not stop.is_set():
            with contextlib.suppress(RuntimeError):  # it is told so, too
                torch.cuda.synchronize()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        with caplog.at_level(logging.INFO, "samtrt.kernels.graph"):
            for _ in range(8):
                encoder = make()
                assert torch.equal(encoder(x), expected) and torch.equal(encoder(x), expected)
    finally:
        stop.set()
        thread.join()
    assert "not recorded" in caplog.text  # else this has tested nothing
    assert torch.equal(encoder(x), expected)
    assert encoder._graphed[1].is_recorded  # type: ignore[attr-defined]
    del encoder
    assert allocated() == before  # (which empties the cache: not while torch sees a recording)


def test_it_is_not_recorded_in_a_graph_of_its_callers() -> None:
    encoder = make_cuda()
    x = pictures(encoder)
    expected = encoder(x)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(EngineError, match="replays a graph of its own"),
        torch.cuda.graph(graph),
    ):
        encoder(x)
    assert torch.equal(encoder(x), expected)

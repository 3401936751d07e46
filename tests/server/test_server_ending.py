"""SIGTERM and Ctrl-C while there is work: every request is answered, and the process ends."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from server_support import address_of, encoded, picture, tiny_model

from samtrt.console import EXIT_INTERRUPTED

PNG = {"Content-Type": "image/png"}

# A server whose encoder first takes as many seconds as the last argument says.
PROGRAM = """
import logging, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell of a test may ignore it
from dataclasses import replace
from pathlib import Path
from samtrt.console import run_script
from samtrt.encoders.cpu import CpuImageEncoder
from samtrt.server.launch import ServeOptions, serve

from samtrt.server.settings import Settings

logging.basicConfig(format="%(message)s", level=logging.INFO)
encode, seen = CpuImageEncoder.__call__, []

def slow(self, x):
    if seen:  # the first picture is the warm-up
        time.sleep(float(sys.argv[3]))
    seen.append(x.shape)
    return encode(self, x)

CpuImageEncoder.__call__ = slow
settings = replace(Settings(), drain_seconds=float(sys.argv[2]))
options = ServeOptions(Path(sys.argv[1]), port=0, page=False, settings=settings)
sys.exit(run_script(lambda: serve(options)))
"""


class Served:
    """A server process.

    Args:
        drain_seconds: see ``Settings``.
        encode_seconds: how long every picture takes.
    """

    def __init__(self, drain_seconds: float, encode_seconds: float) -> None:
        arguments = [str(tiny_model()), str(drain_seconds), str(encode_seconds)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self.url = address_of(self.process, self.said)
        threading.Thread(target=lambda: self.said.extend(self.process.stderr)).start()

    def wait_for(self, lane: str, pending: int) -> None:
        deadline = time.monotonic() + 60
        while httpx.get(f"{self.url}/health").json()["lanes"][lane]["pending"] != pending:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def post(self, seed: int) -> httpx.Response:
        content = encoded(picture(seed))
        return httpx.post(f"{self.url}/embed", content=content, headers=PNG, timeout=60)

    def end(self, sent: int, within: float) -> int:
        """Sends the signal; the status of a process that has ended in time, without a trace."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(sent)
        status = self.process.wait(within)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, "processes that decode pictures are left"
        time.sleep(0.2)
        assert "Traceback" not in "".join(self.said), self.said
        return status


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def make(drain_seconds: float, encode_seconds: float) -> Served:
        served.append(Served(drain_seconds, encode_seconds))
        return served[-1]

    yield make
    for server in served:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["connection"] == "close"
    assert "ending" in answer.json()["detail"]


def test_sigterm_lets_work_finish_and_refuses_more(
    serve: Callable[..., Served], threads: ThreadPoolExecutor
) -> None:
    server = serve(drain_seconds=30, encode_seconds=2)
    answers = [threads.submit(server.post, seed) for seed in (1, 2)]
    server.wait_for("encode", 2)
    ended = threads.submit(server.end, signal.SIGTERM, 30)
    time.sleep(0.5)
    assert_refused(server.post(3))
    assert_refused(httpx.get(f"{server.url}/ready"))
    assert [answer.result().status_code for answer in answers] == [200, 200]
    assert ended.result() == -signal.SIGTERM


def test_work_that_outlasts_the_drain_is_answered_503(
    serve: Callable[..., Served], threads: ThreadPoolExecutor
) -> None:
    server = serve(drain_seconds=1, encode_seconds=60)
    answers = [threads.submit(server.post, seed) for seed in (1, 2)]
    server.wait_for("encode", 2)
    assert server.end(signal.SIGTERM, within=5) == -signal.SIGTERM
    for answer in answers:
        assert_refused(answer.result())


def everything_at_once(server: Served, threads: ThreadPoolExecutor) -> list[Future[Any]]:
    """An encoder at work, a queue, a decoder at work, a body that trickles, silence."""
    name = server.post(0).json()["id"]
    body = {"id": name, "points_per_side": 64, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    large = encoded(np.zeros((6000, 6000, 3), np.uint8), compress_level=1)
    futures = [threads.submit(server.post, seed) for seed in (1, 2)]
    futures += [
        threads.submit(httpx.post, f"{server.url}/{path}", timeout=60, **options)
        for path, options in (
            ("everything", {"json": body}),
            ("embed", {"content": large, "headers": PNG}),
        )
    ]
    server.wait_for("everything", 1)
    server.wait_for("encode", 3)
    return futures


def test_ctrl_c_ends_within_two_seconds_whatever_runs(
    serve: Callable[..., Served], threads: ThreadPoolExecutor
) -> None:
    server = serve(drain_seconds=30, encode_seconds=3)
    futures = everything_at_once(server, threads)
    host, port = server.url.removeprefix("http://").split(":")
    silent, trickling = (socket.create_connection((host, int(port))) for _ in range(2))
    trickling.sendall(
        b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        b"Content-Length: 1000\r\n\r\nonly this"
    )
    time.sleep(0.2)
    assert server.end(signal.SIGINT, within=2) == EXIT_INTERRUPTED
    for future in futures:
        assert_refused(future.result())
    trickling.settimeout(5)
    assert trickling.recv(100).startswith(b"HTTP/1.1 503")
    silent.settimeout(5)
    with silent:
        assert silent.recv(100) == b""


def test_ctrl_c_does_not_wait_for_a_drain_that_goes_on(
    serve: Callable[..., Served], threads: ThreadPoolExecutor
) -> None:
    server = serve(drain_seconds=60, encode_seconds=60)
    answer = threads.submit(server.post, 1)
    server.wait_for("encode", 1)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.end(signal.SIGINT, within=2) in (EXIT_INTERRUPTED, -signal.SIGTERM)
    assert_refused(answer.result())

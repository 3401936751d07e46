"""Lanes: blocking work leaves the event loop for worker threads, through a bounded queue.

Work for one request ends when its client has left.
"""

import asyncio
import contextvars
import functools
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Request

from samtrt.server.problems import RequestError

Result = TypeVar("Result")


class AbandonedError(Exception):
    """Nobody waits for this result any more."""


class Lane:
    """Worker threads with a bounded queue before them.

    Used from one event loop only.

    Args:
        name: what it does, for threads, metrics and messages.
        workers: jobs that run at once.
        capacity: jobs that wait or run; more are refused with 503.
        timeout: seconds from submission to result; past it the answer is 504.
    """

    def __init__(self, name: str, workers: int, capacity: int, timeout: float) -> None:
        self.name = name
        self.capacity = capacity
        self.timeout = timeout
        self.pending = 0
        self.waited: Callable[[float], object] = lambda seconds: None  # called when a job starts
        self._threads = ThreadPoolExecutor(workers, f"samtrt-{name}")

    def check_room(self) -> None:
        """Raises RequestError (503) while the lane is full."""
        if self.pending >= self.capacity:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the {self.name} queue is full ({self.capacity} waiting); try again in a moment",
                retry_after=1,
            )

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs the function in a worker thread.

        A job that is still waiting when its time is up, or when its caller goes away, never
        starts. One that runs is left to finish, and holds its place until then.

        Raises:
            RequestError: 503 when the lane is full, 504 when the time is up.
        """
        self.check_room()
        self.pending += 1
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # a trace goes on in the thread
        work = functools.partial(context.run, self._started, time.perf_counter(), function)
        job = self._threads.submit(work, *arguments)
        job.add_done_callback(lambda _: self._release(loop))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), self.timeout)
        except asyncio.TimeoutError:  # the built-in one from Python 3.11 on
            raise RequestError(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"no result within {self.timeout:g} s; try again when the server is less busy, "
                "or with a smaller request",
                retry_after=5,
            ) from None

    def _started(self, since: float, function: Callable[..., Result], *arguments: object) -> Result:
        self.waited(time.perf_counter() - since)
        return function(*arguments)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(self._decrement)

    def _decrement(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        """Ends the threads once their running jobs are done; waiting jobs never start."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def unless_disconnected(connection: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; the work is cancelled when the client disconnects before it is there.

    Raises:
        ConnectionAbortedError: the client has left.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnected(connection))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionAbortedError
        return task.result()
    finally:
        task.cancel()
        left.cancel()


async def _disconnected(connection: Request) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass

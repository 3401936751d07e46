"""Replicas in processes of this machine: one a GPU, or several on its CPUs.

They listen on sockets in a folder that only this user can enter, and end with the process that has
started them, however that ends.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from samtrt.errors import SamtrtError
from samtrt.server.replicas.exchange import (
    Answer,
    Forwarded,
    ReplicaLostError,
    answered_headers,
)
from samtrt.server.replicas.routing import ranked
from samtrt.server.settings import TOKEN_VARIABLE

logger = logging.getLogger(__name__)

# Until one that has ended is started again: longer each time that it ends before it was up.
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_GRACE_SECONDS = 5.0  # beside the seconds that requests have to finish
# Below the servers' own, so that no request is sent on a connection that is being closed.
_KEEP_SECONDS = 5.0
_KEPT = 16


@dataclass
class _Process:
    name: str
    environment: Mapping[str, str]
    path: Path
    client: httpx.AsyncClient
    process: asyncio.subprocess.Process | None = None
    computed_by: str = ""
    lives: bool = False
    first_try: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class ProcessReplicas:
    """Starts a process for each replica, starts it again where it ends, and sends it requests.

    Args:
        command: what each runs; the path of its socket is added.
        environments: variables of each, beside this process's own: which GPU it has.
        drain_seconds: how long their requests may take at the end.
        shared: whether they share a store.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        drain_seconds: float,
        shared: bool,
    ) -> None:
        self.shared = shared
        self._command = list(command)
        self._environments = environments
        self._drain_seconds = drain_seconds
        self._processes: dict[str, _Process] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._turn = 0
        self._stopping = False
        self._folder = tempfile.TemporaryDirectory(prefix="samtrt-")  # mode 0700

    async def computed_by(self) -> str:
        """See ``Replicas``."""
        return next((one.computed_by for one in self._processes.values() if one.computed_by), "")

    async def start(self) -> None:
        """Starts all of them, and waits until they are up.

        Raises:
            SamtrtError: one does not start.
        """
        for number, environment in enumerate(self._environments):
            path = Path(self._folder.name) / f"{number}.socket"
            transport = httpx.AsyncHTTPTransport(
                uds=str(path),
                # (httpcore looks at each idle connection for each request.)
                limits=httpx.Limits(
                    max_keepalive_connections=_KEPT, keepalive_expiry=_KEEP_SECONDS
                ),
            )
            client = httpx.AsyncClient(transport=transport, timeout=None)
            one = _Process(str(number), environment, path, client)
            self._processes[one.name] = one
            self._watches.append(asyncio.create_task(self._watch(one)))
        await asyncio.gather(*(one.first_try for one in self._processes.values()))

    async def _watch(self, one: _Process) -> None:
        """Runs a replica's process, again and again."""
        failures = 0
        while not self._stopping:
            try:
                await self._run(one)
                failures = 0
            except SamtrtError as error:
                if not one.first_try.done():
                    one.first_try.set_exception(error)
                    return
                failures += 1
                logger.error("%s", error)
            if self._stopping:
                return
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            logger.warning("replica %s has ended; it starts again in %g s", one.name, pause)
            await asyncio.sleep(pause)

    async def _run(self, one: _Process) -> None:
        """One life of a replica.

        Raises:
            SamtrtError: it ended before it was up.
        """
        one.path.unlink(missing_ok=True)
        environment = {**os.environ, **one.environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        environment.pop(TOKEN_VARIABLE, None)  # the front has asked for it
        # In a session of its own: Ctrl-C on the terminal is the front's to handle. Its input ends
        # with this process.
        one.process = await asyncio.create_subprocess_exec(
            *self._command,
            str(one.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert one.process.stdout is not None
        try:
            line = await one.process.stdout.readline()
            one.computed_by = json.loads(line)["computed_by"]
        except (ValueError, KeyError, TypeError) as error:
            with suppress(ProcessLookupError):
                one.process.kill()
            status = await one.process.wait()
            raise SamtrtError(
                f"replica {one.name} did not start (status {status}); its log says why"
            ) from error
        one.lives = True
        if not one.first_try.done():
            one.first_try.set_result(None)
        logger.info("replica %s is up", one.name)
        try:
            await one.process.wait()
        finally:
            one.lives = False

    def candidates(self, key: str | None) -> list[str]:
        """See ``Replicas``."""
        names = self.all()
        if key is not None:
            return ranked(key, names)
        self._turn += 1
        middle = self._turn % len(names) if names else 0
        return names[middle:] + names[:middle]

    def all(self) -> list[str]:
        """See ``Replicas``."""
        return [name for name, one in self._processes.items() if one.lives]

    async def send(self, name: str, request: Forwarded) -> Answer:
        """See ``Replicas``."""
        one = self._processes[name]
        target = quote(request.path, safe="/~!$&'()*+,;=:@").encode()
        if request.query:
            target += b"?" + request.query
        url = httpx.URL(scheme="http", host="replica", raw_path=target)
        try:
            answer = await one.client.send(
                one.client.build_request(
                    request.method, url, headers=request.headers, content=request.body
                ),
                stream=True,
            )
        except httpx.TransportError as error:
            raise ReplicaLostError(name) from error
        return Answer(answer.status_code, answered_headers(answer.headers.raw), _parts(answer))

    async def stop(self) -> None:
        """Ends all of them; requests at work may finish."""
        self._stopping = True
        processes = [one.process for one in self._processes.values() if one.process is not None]
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        ended = asyncio.gather(*(process.wait() for process in processes))
        try:
            await asyncio.wait_for(ended, self._drain_seconds + _GRACE_SECONDS)
        except asyncio.TimeoutError:
            for process in processes:
                with suppress(ProcessLookupError):
                    process.kill()
        for watch in self._watches:
            watch.cancel()
        results = await asyncio.gather(*self._watches, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                logger.error("%s", result)
        for one in self._processes.values():
            await one.client.aclose()
            if one.first_try.done():
                one.first_try.exception()  # seen
        self._folder.cleanup()


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it was sent; a replica that is lost amid it is one that has not answered."""
    try:
        async for part in answer.aiter_raw():
            yield part
    except httpx.TransportError as error:
        raise ReplicaLostError from error
    finally:
        await answer.aclose()


def gpu_environments(chosen: str, available: int) -> list[dict[str, str]]:
    """The environment of each replica that has a GPU of its own.

    Args:
        chosen: ``all``, or numbers of GPUs with commas between them.
        available: how many GPUs this process sees.

    Raises:
        SamtrtError: there is none, or no such one.
    """
    if not available:
        raise SamtrtError(
            "--gpus is given, and this machine has no GPU that torch can use; --workers N serves "
            "on its CPUs"
        )
    numbers = range(available) if chosen == "all" else [int(n) for n in chosen.split(",")]
    visible: list[Any] = (
        os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        if os.environ.get("CUDA_VISIBLE_DEVICES")
        else list(range(available))
    )
    for number in numbers:
        if number >= available:
            raise SamtrtError(
                f"--gpus names GPU {number}, and this machine has {available}, counted from 0"
            )
    return [{"CUDA_VISIBLE_DEVICES": str(visible[number])} for number in numbers]


def cpu_environments(workers: int) -> list[dict[str, str]]:
    """The environment of each replica on the CPUs, which share the cores evenly."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = max(1, cores // workers)
    given = os.environ.get("OMP_NUM_THREADS")
    return [{"OMP_NUM_THREADS": given or str(threads)}] * workers

"""Strangers' pictures are decoded in processes of their own, with an end to their time and memory.

A decoder that takes too long is killed, one that wants too much memory fails, one that crashes
takes nothing along; the next picture finds a fresh process. What comes back is a line of JSON and
raw pixels, never a pickle, so that a decoder that was taken over runs no code in the server.

Why not a library's pool: one of ``concurrent.futures`` is broken for good once a worker has died,
and cannot end one; the workers of pebble's share a pipe and its lock, which a worker that is
killed while it sends leaves half written.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from samtrt.server.pictures import decode_picture
from samtrt.server.problems import RequestError
from samtrt.server.settings import TOKEN_VARIABLE, Settings

_LINE_BYTES = 65_536
# Without the current folder, which may hold anything, in the path.
_PROGRAM = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from samtrt.server.decoding import main; main()"
)


class PictureReader:
    """Decodes uploads, several at once, each in a process that ends where the limits are.

    Safe to use from several threads. A process starts with its first picture, or by ``start``.

    Args:
        settings: ``read_workers``, ``read_seconds``, ``read_bytes`` and the pictures' limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._processes = [_Process(settings) for _ in range(settings.read_workers)]
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)

    def start(self) -> None:
        """Starts the processes, so that no picture waits for one; does not wait either."""
        for process in self._processes:
            process.running()

    def __call__(self, data: bytes, media_type: str) -> npt.NDArray[np.uint8]:
        """The picture as [H, W, 3] uint8 RGB; waits for a process that is free.

        Raises:
            RequestError: as ``decode_picture``; 422 where time or memory is at its end.
        """
        process = self._idle.get()
        try:
            return process.decode(data, media_type)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        for process in self._processes:
            process.close()


class _Process:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def decode(self, data: bytes, media_type: str) -> npt.NDArray[np.uint8]:
        process = self.running()
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        watch = threading.Timer(self._settings.read_seconds, end)
        watch.start()
        try:
            return self._exchange(process, data, media_type)
        except (OSError, EOFError, ValueError) as error:
            self._end(process)
            raise RequestError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"the picture takes longer than {self._settings.read_seconds:g} s to decode; "
                "scale it down, or save it anew"
                if late.is_set()
                else "the picture made its decoder fail; save it anew",
            ) from error
        finally:
            watch.cancel()

    def _exchange(
        self, process: subprocess.Popen[bytes], data: bytes, media_type: str
    ) -> npt.NDArray[np.uint8]:
        assert process.stdin is not None and process.stdout is not None
        _send(process.stdin, {"media_type": media_type, "bytes": len(data)}, data)
        answer = _receive(process.stdout)
        if "detail" in answer:
            raise RequestError(HTTPStatus(answer["status"]), answer["detail"])
        height, width = int(answer["height"]), int(answer["width"])
        if not 0 < height * width <= self._settings.max_pixels:
            raise ValueError(f"{height}×{width} pixels")
        pixels = np.empty((height, width, 3), np.uint8)
        _read_into(process.stdout, pixels.data.cast("B"))
        return pixels

    def running(self) -> subprocess.Popen[bytes]:
        """The process, started anew where it has ended."""
        with self._lock:
            if self._closed:
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the server ends", retry_after=5)
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self._settings
        limits = {
            name: getattr(settings, name)
            for name in ("max_pixels", "max_side", "read_seconds", "read_bytes")
        }
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop(TOKEN_VARIABLE, None)
        # A session of its own, so that
        # Ctrl-C on the terminal is the server's to handle.
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        assert process.stdin is not None and process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was left to flush has no reader
                pipe.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            process.kill()
            process.wait()


def _send(pipe: IO[bytes], head: dict[str, Any], body: bytes | memoryview = b"") -> None:
    pipe.write(json.dumps(head).encode() + b"\n")
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> dict[str, Any]:
    line = pipe.readline(_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the other end is gone")
    return json.loads(line)


def _read_into(pipe: IO[bytes], view: memoryview) -> None:
    while len(view):
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other end is gone")
        view = view[count:]


def main() -> None:
    """The process's side: pictures in on stdin, pixels out on stdout, until stdin ends."""
    limits = json.loads(sys.argv[1])
    settings = Settings(**limits)
    _limit_memory(settings.read_bytes)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            head = _receive(source)
        except EOFError:
            return
        data = source.read(head["bytes"])
        if hasattr(signal, "alarm"):  # for a server that was killed and can end nothing any more
            signal.alarm(2 * int(settings.read_seconds) + 2)
        try:
            pixels = decode_picture(data, head["media_type"], settings)
        except RequestError as problem:
            _send(sink, {"status": int(problem.status), "detail": problem.detail})
        else:
            height, width = pixels.shape[:2]
            _send(sink, {"height": height, "width": width}, pixels.data.cast("B"))
            del pixels
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _limit_memory(size: int) -> None:
    """Lets the process take ``size`` bytes more than it has; only Linux keeps such a limit."""
    if sys.platform != "linux":
        return
    import resource

    have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + size, have + size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

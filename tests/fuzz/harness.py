"""Runs one case of a target and says what came of it.

A target makes a valid input, mutates it and reads it. A case is named by its target and number and
can be run again alone. In a campaign it runs in a process of its own (``Worker``) with bounded
memory, which is ended when the case takes too long.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from samtrt.errors import SamtrtError
from samtrt.server.problems import RequestError

REFUSED = "refused in one line"
SAME = "accepted, the same"
OTHER = "accepted, another valid input"
TRACEBACK = "traceback"
HANG = "hang"
WRONG = "wrong output accepted"
OUTCOMES = (REFUSED, SAME, OTHER, TRACEBACK, HANG, WRONG)
FAULTS = (TRACEBACK, HANG, WRONG)

# A case that takes longer hangs: so much of a CPU, or so long in all, however busy the machine.
CPU_SECONDS = 20.0
WALL_SECONDS = 180.0
_MAX_LINE = 10_000  # characters of a refusal
_WORKER = str(Path(__file__).with_name("worker.py"))

Case = Callable[[np.random.Generator], str]


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        name: in records, and of the seeds.
        share: of a campaign's cases, beside the other targets'.
        open: makes the valid input in a folder; returns what runs a case there: it answers
            ``SAME`` or ``OTHER``, raises ``WrongError``, or whatever the reader raises.
        least_refused: share of its cases that must be refused, for the mutations to mean anything.
        is_slow: whether opening it takes more than a few seconds.
    """

    name: str
    share: int
    open: Callable[[Path], Case]
    least_refused: float = 0.2
    is_slow: bool = False


class WrongError(Exception):
    """Something was accepted and is not what its reader takes it for."""


def same_or_wrong(is_same: bool, what: str) -> str:
    """``SAME``.

    Raises:
        WrongError: it is not.
    """
    if not is_same:
        raise WrongError(what)
    return SAME


def run_case(target: Target, case: Case, number: int) -> tuple[str, str]:
    """The outcome of a case, and what there is to say of it."""
    generator = np.random.default_rng([zlib.crc32(target.name.encode()), number])
    try:
        return case(generator), ""
    except (SamtrtError, RequestError) as error:
        text = str(error)
        if "\n" in text or not 0 < len(text) < _MAX_LINE:
            return TRACEBACK, f"a refusal of other than one line: {text[:1000]!r}"
        return REFUSED, text[:200]
    except WrongError as error:
        return WRONG, str(error)
    except Exception:
        return TRACEBACK, traceback.format_exc()[-3000:]


class Worker:
    """A process that runs cases, started anew where one has ended it.

    Args:
        module: where the targets are, as ``TARGETS``.
    """

    def __init__(self, module: str = "targets") -> None:
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the worker

    def run(self, target: str, number: int) -> dict[str, Any]:
        """``outcome``, ``detail`` and ``cpu_seconds`` of a case."""
        process = self._running(target)
        used = psutil.Process(process.pid)
        before, started = _cpu_seconds(used), time.monotonic()
        assert process.stdin is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        while True:
            try:
                line = self._answers.get(timeout=0.5)
            except queue.Empty:
                late = _cpu_seconds(used) - before > CPU_SECONDS
                if not late and time.monotonic() - started < WALL_SECONDS:
                    continue
                self.close()
                return {"outcome": HANG, "detail": "", "cpu_seconds": CPU_SECONDS}
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
            self.close()
            return {
                "outcome": TRACEBACK,
                "detail": f"its process ended with status {process.returncode}: {self._end()}",
                "cpu_seconds": 0.0,
            }

    def _running(self, target: str) -> "subprocess.Popen[str]":
        """The process, once the target is open there: the clock is not the opening's."""
        if self._process is not None:
            if self._opened == target:
                return self._process
            self.close()
        self._folder = tempfile.mkdtemp(prefix="samtrt-fuzz-", dir=_memory_folder())
        self._process = process = subprocess.Popen(
            [sys.executable, _WORKER, self._module, target, self._folder],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._opened = target
        self._answers = answers = queue.SimpleQueue[str]()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put("")

        threading.Thread(target=read, daemon=True).start()
        if not answers.get():
            self.close()
            raise RuntimeError(f"{target} cannot be opened: {self._end()}")
        return process

    def _end(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:]

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._process.pid).children(recursive=True):
                    child.kill()
            self._process.kill()
            self._process.wait()
            self._process = None
            shutil.rmtree(self._folder)


def _memory_folder() -> str | None:
    """Where files need no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # ended
        return 0.0
    return float(times.user + times.system)

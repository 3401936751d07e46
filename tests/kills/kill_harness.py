"""Kills commands while they write, runs them two at once and out of room, and looks what is left.

Commands run in forks of this process, which has run each of them once on one thread: a kill lands
in the command's own work and not in the imports, nor in the seconds that torch takes to trace a
decoder with its output still empty. It comes from a timer of the kernel, which is set when the
command begins, or begins to write.
"""

import copy
import ctypes
import fcntl
import io
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from writing_commands import (
    Command,
    Inputs,
    LostError,
    Reference,
    enter_checkout,
    files_of,
    visible,
)

from samtrt import files
from samtrt.checkpoints.config import EncoderConfig
from samtrt.cli.commands import run as run_command
from samtrt.console import run_script
from samtrt.decoders import export
from samtrt.decoders.export import DecoderExport
from samtrt.errors import SamtrtError

SECONDS = 300.0  # a command that takes longer hangs
_TOLD = "another process is writing"
_SECONDS = struct.Struct("d")
_STATUS_OF_VERSION = 10  # a reading fork's status: 10 + version; 1 refused, 2 not foreseen


@dataclass
class Outcome:
    """What came of a command's rounds.

    Attributes:
        kills: SIGKILLs that ended it.
        while_writing: those that came after it had begun to write.
        earlier, new: what was there after a kill, whole.
        nothing: kills of a first run, after which there was nothing, as before.
        two_at_once: rounds of two at once.
        told: second ones that were refused because another was writing.
        out_of_room: runs that found no room, were refused in one line and kept the earlier.
        faults: what must not be, a line each.
    """

    kills: int = 0
    while_writing: int = 0
    earlier: int = 0
    new: int = 0
    nothing: int = 0
    two_at_once: int = 0
    told: int = 0
    out_of_room: int = 0
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


class Fork:
    """Work in a process of its own.

    Args:
        work: returns the status.
        kill_after: seconds after which the kernel kills it; None for never.
        from_writing: whether these begin with the first file that is written, or with the work.
        limit: bytes that a file of its may have (``RLIMIT_FSIZE``); None for any number.

    Attributes:
        times: when it began to write and when it was done, in seconds; known at its end, where it
            came so far.
    """

    def __init__(
        self,
        work: Callable[[], int],
        kill_after: float | None = None,
        from_writing: bool = False,
        limit: int | None = None,
    ) -> None:
        self._telling, telling = os.pipe()
        self.times: list[float] = []
        self._output, output = os.pipe()
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, 1 << 20)  # all that is printed fits
        self.pid = os.fork()
        if self.pid:
            os.close(telling)
            os.close(output)
            return
        status = 2
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            if kill_after is not None and not from_writing:
                _kill_after(kill_after)
            _on_writing(telling, kill_after if from_writing else None)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            begun = time.monotonic()
            status = work()
            os.write(telling, _SECONDS.pack(time.monotonic() - begun))
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def end(self) -> tuple[int, str]:
        """Waits for its end; its status, −9 where it was killed, and what it has printed."""
        ended = time.monotonic() + SECONDS
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > ended:
                os.kill(self.pid, signal.SIGTERM)
            time.sleep(0.002)
        with os.fdopen(self._output, "rb") as output:
            said = output.read().decode("utf-8", "replace")
        with os.fdopen(self._telling, "rb") as told:
            self.times = [seconds for (seconds,) in _SECONDS.iter_unpack(told.read())]
        return os.waitstatus_to_exitcode(status), said


def _on_writing(pipe: int, kill_after: float | None) -> None:
    """Tells when the first temporary file is claimed, and sets the timer."""
    claim, begun = files._first_free, time.monotonic()

    def claimed(*arguments: Any) -> Any:
        files._first_free = claim
        os.write(pipe, _SECONDS.pack(time.monotonic() - begun))
        if kill_after is not None:
            _kill_after(kill_after)
        return claim(*arguments)

    files._first_free = claimed


def _kill_after(seconds: float) -> None:
    """Has the kernel send SIGKILL, wherever the process then is."""
    library = ctypes.CDLL(None, use_errno=True)
    event = struct.pack("=qii48x", 0, signal.SIGKILL, 0)  # struct sigevent, SIGEV_SIGNAL
    timer = ctypes.c_void_p()
    whole, rest = divmod(max(1, int(seconds * 1e9)), 10**9)
    when = struct.pack("=qqqq", 0, 0, whole, rest)  # struct itimerspec, once
    if library.timer_create(time.CLOCK_MONOTONIC, event, ctypes.byref(timer)) != 0 or (
        library.timer_settime(timer, 0, when, None) != 0
    ):
        raise OSError(ctypes.get_errno(), "no timer")


class Trial:
    """One command and the folder it writes to.

    Args:
        work: a folder for outputs, which holds nothing else.
        seed: of the kills' times.
    """

    def __init__(self, command: Command, inputs: Inputs, work: Path, seed: int = 0) -> None:
        self.command, self.inputs = command, inputs
        self.random = random.Random(f"{command.name} {seed}")
        self.output = work / command.name
        self.outcome = Outcome()
        self.reference: Reference = []
        spans = []
        for version in range(2):
            shutil.rmtree(self.output, ignore_errors=True)
            fork = self._start(version)
            status, said = fork.end()
            assert status == 0, said
            writing, done = fork.times
            spans.append((done, done - writing))
            self.reference.append(files_of(self.output))
        self.seconds, self.seconds_writing = map(min, zip(*spans, strict=True))
        self.current = 1  # the version that is there
        self.names = set(self.reference[0])
        assert self.names == set(self.reference[1]) == visible(self.reference[0])

    def _start(self, version: int, **how: Any) -> Fork:
        argv = self.command.argv(self.inputs, self.output, version)

        def work() -> int:
            enter_checkout()
            return run_script(lambda: run_command(argv))

        return Fork(work, **how)

    def read(self) -> int | None:
        """The version that is there; None where that is refused in one line.

        Raises:
            LostError: what is there is no version, whole.
        """

        def work() -> int:
            try:
                version = self.command.read(self.inputs, self.output, self.reference)
                return _STATUS_OF_VERSION + version
            except (SamtrtError, FileNotFoundError) as error:
                print(error)
                return 1

        status, said = Fork(work).end()
        if status == 1:
            return None
        if status < _STATUS_OF_VERSION:
            raise LostError(said[-1000:])
        return status - _STATUS_OF_VERSION

    def _fault(self, what: str) -> None:
        self.outcome.faults.append(f"{self.command.name}: {what}")

    def kill(self) -> None:
        """Kills the command once, at a random time of its work or of its writing."""
        before: int | None = self.current
        version = 1 - self.current
        if self.random.random() < 0.2:  # as a first run
            shutil.rmtree(self.output)
            before = None
        from_writing = self.random.random() < 0.85
        span = self.seconds_writing if from_writing else self.seconds
        after = self.random.uniform(0, span)
        fork = self._start(version, kill_after=after, from_writing=from_writing)
        status, said = fork.end()
        if status != -signal.SIGKILL:
            if status != 0:
                self._fault(f"status {status}: {said[-500:]}")
            self.current = version
            return
        self.outcome.kills += 1
        self.outcome.while_writing += bool(fork.times)
        self._check_after_kill(before, version)

    def _check_after_kill(self, before: int | None, version: int) -> None:
        try:
            found = self.read()
        except LostError as error:
            self._fault(f"after a kill: {error}")
        else:
            if found is None and before is not None:
                self._fault("the earlier output was lost")
            elif found is None:
                self.outcome.nothing += 1
            elif found == version:
                self.outcome.new += 1
            else:
                self.outcome.earlier += 1
        self.run_whole(version)

    def run_whole(self, version: int) -> None:
        """Runs it undisturbed: as if nothing had been, and nothing else is left."""
        status, said = self._start(version).end()
        if status != 0:
            self._fault(f"the next run ended with status {status}: {said[-500:]}")
            return
        found = files_of(self.output)
        if set(found) != self.names:
            self._fault(f"left after the next run: {sorted(set(found) ^ self.names)}")
        if self.read() != version:
            self._fault("the next run wrote another version")
        self.current = version
        if self.command.is_same_every_time and found != self.reference[version]:
            self._fault("the next run's files differ from those of an undisturbed one")

    def run_two(self) -> None:
        """Runs both versions at once."""
        versions = (0, 1)
        forks = [self._start(version) for version in versions]
        ends = [fork.end() for fork in forks]
        self.outcome.two_at_once += 1
        for status, said in ends:
            told = status == 1 and said.count(_TOLD) == 1
            self.outcome.told += told
            if status != 0 and not (told and self.command.is_alone):
                self._fault(f"one of two ended with status {status}: {said[-500:]}")
        succeeded = [v for v, (status, _) in zip(versions, ends, strict=True) if status == 0]
        try:
            found = self.read()
        except LostError as error:
            self._fault(f"after two at once: {error}")
            return
        if found not in succeeded:
            self._fault(f"of two at once {succeeded} succeeded, and {found} is there")
        if set(files_of(self.output)) != self.names:
            self._fault("two at once left other files than one does")
        self.run_whole(self.random.randrange(2))

    def run_out_of_room(self, share: float) -> None:
        """Runs it where no file may be larger than a share of its largest one."""
        before = self.current
        largest = max(len(content) for content in self.reference[1 - before].values())
        self._check_refused(before, self._start(1 - before, limit=int(share * largest)))

    def run_on_full_disk(self, room: int) -> None:
        """Runs it where the disk, which holds nothing else, has so many bytes left."""
        before = self.current
        with _filled(self.output.parent, room):
            self._check_refused(before, self._start(1 - before))

    def _check_refused(self, before: int, fork: Fork) -> None:
        status, said = fork.end()
        try:
            found = self.read()
        except LostError as error:
            self._fault(f"out of room: {error}")
            return
        if status == 0:
            if found != 1 - before:
                self._fault(f"out of room, it claims success: {said[-500:]}")
        elif status != 1 or "Traceback" in said or "cannot write" not in said:
            self._fault(f"out of room: status {status}: {said[-1000:]}")
        elif found != before and not (self.command.is_job and found is not None):
            self._fault(f"out of room, the earlier output was lost: {said[-500:]}")
        else:
            self.outcome.out_of_room += 1
        if found is not None:
            self.current = found
        left = set(files_of(self.output)) - self.names
        if left:
            self._fault(f"left when out of room: {sorted(left)}")


@contextmanager
def _filled(disk: Path, room: int) -> Iterator[None]:
    """Fills a small disk up to so many bytes."""
    filler, free = disk / "filler", os.statvfs(disk)
    try:
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize - room))
        yield
    finally:
        filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a disk of 128 MiB there; yields whether that was allowed (to root, mostly)."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def warm_up(commands: Iterable[Command], inputs: Inputs, folder: Path) -> None:
    """Runs each version once in this process, on one thread: forks import and trace nothing."""
    inputs.write()
    enter_checkout()
    _trace_once()
    for command in commands:
        for version in range(2):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                run_command(command.argv(inputs, folder / command.name, version))


def _trace_once() -> None:
    """Keeps the graph of each decoder that was exported, by its parameters."""
    trace = export._to_onnx
    traced: dict[bytes, Any] = {}

    def kept(model: nn.Module, options: DecoderExport, config: EncoderConfig) -> Any:
        key = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
        if key not in traced:
            traced[key] = trace(model, options, config)
        return copy.deepcopy(traced[key])

    export._to_onnx = kept

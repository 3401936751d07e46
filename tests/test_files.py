"""Files are whole or absent: killed, interrupted, out of disk, or written twice at once."""

import errno
import linecache
import os
import random
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from oracle import tiny_config

from samtrt import files
from samtrt.checkpoints.parameters import (
    Parameters,
    load_parameters,
    random_parameters,
    save_parameters,
)
from samtrt.encoders.engine import EngineInfo, read_engine, writing_engine
from samtrt.errors import SamtrtError
from samtrt.files import read_whole, replacing, writing

# More for a long run by hand.
KILLS = int(os.environ.get("SAMTRT_KILLS", "20"))


def small_set(seed: int) -> Parameters:
    made = random_parameters(tiny_config(depth=1, global_attn_indexes=()), seed)
    halves = {name: tensor.astype(np.float16) for name, tensor in made.tensors.items()}
    return replace(made, tensors=halves)


SETS = [small_set(seed) for seed in range(2)]
INFO = EngineInfo("cpu", tiny_config(), "fp32", 1, "a" * 64)
CONTENTS = [bytes([number]) * 300_000 for number in range(2)]


@dataclass(frozen=True)
class Output:
    """Something that the project writes, in two versions.

    Attributes:
        write: version 0 or 1 into a folder.
        read: which version the folder holds; raises where it holds neither whole.
        names: of the files that belong there.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], int]
    names: frozenset[str]


def write_one_engine(folder: Path, number: int) -> None:
    with writing_engine(folder) as engine:
        with writing(engine.file):
            engine.file.write_bytes(CONTENTS[number])
        engine.info = INFO


def write_decoder(folder: Path, number: int) -> None:
    with replacing(folder / "decoder.onnx") as path:
        path.write_bytes(CONTENTS[number])


ENGINE = Output(
    write_one_engine,
    lambda folder: CONTENTS.index(bytes(read_engine(folder)[1])),
    frozenset({"encoder.engine", "encoder.json"}),
)
PARAMETERS = Output(
    lambda folder, number: save_parameters(SETS[number], folder),
    lambda folder: [one.sha256 for one in SETS].index(load_parameters(folder).sha256),
    frozenset({"parameters.safetensors", "config.json"}),
)
DECODER = Output(
    write_decoder,
    lambda folder: CONTENTS.index((folder / "decoder.onnx").read_bytes()),
    frozenset({"decoder.onnx"}),
)
OUTPUTS = pytest.mark.parametrize(
    "output", [ENGINE, PARAMETERS, DECODER], ids=["engine", "parameters", "decoder"]
)


def in_child(work: Callable[[], object]) -> int:
    """Forks a process that does the work and ends with 0, or 1 for a ``SamtrtError``."""
    child = os.fork()
    if child:
        return child
    status = 2
    try:
        work()
        status = 0
    except SamtrtError:
        status = 1
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_line(number: int, act: Callable[[], object]) -> None:
    """Acts before that one of the lines of ``samtrt.files`` that touch the disk."""
    count = 0
    touching = ("open(", "lock(", "replace(", "fsync(", "unlink(", "write", "close(", "mkdir(")

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal count
        if frame.f_code.co_filename != files.__file__:
            return None
        source = linecache.getline(files.__file__, frame.f_lineno)
        if event == "line" and any(word in source for word in touching):
            if count == number:
                act()
            count += 1
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]


def assert_whole(folder: Path, output: Output) -> int:
    """The version that is there; the next run cleans up and writes another."""
    found = output.read(folder)
    output.write(folder, 1 - found)
    assert output.read(folder) == 1 - found
    assert {path.name for path in folder.iterdir()} == output.names
    return found


@OUTPUTS
def test_killed_at_any_line_it_leaves_the_earlier_or_the_new(
    tmp_path: Path, output: Output
) -> None:
    output.write(tmp_path, 0)
    seen, line, ended = set(), 0, False
    while not ended:
        before = output.read(tmp_path)

        def killed(before: int = before, line: int = line) -> None:
            at_line(line, lambda: os._exit(9))
            output.write(tmp_path, 1 - before)

        ended = status_of(in_child(killed)) == 0
        seen.add(output.read(tmp_path) == before)
        assert_whole(tmp_path, output)
        line += 1
    assert seen == {True, False} and line > 15


@OUTPUTS
def test_interrupted_at_any_line_it_leaves_the_earlier_or_the_new(
    tmp_path: Path, output: Output
) -> None:
    def interrupt() -> None:
        sys.settrace(None)
        raise KeyboardInterrupt

    output.write(tmp_path, 0)
    line, ended = 0, False
    while not ended:
        before = output.read(tmp_path)
        try:
            at_line(line, interrupt)
            output.write(tmp_path, 1 - before)
            ended = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert_whole(tmp_path, output)
        line += 1
    assert line > 15


@OUTPUTS
def test_killed_at_any_time_it_leaves_the_earlier_or_the_new(
    tmp_path: Path, output: Output
) -> None:
    generator = random.Random(20)
    output.write(tmp_path, 0)
    start = time.perf_counter()
    output.write(tmp_path, 1)
    seconds = time.perf_counter() - start

    def write_on() -> None:
        while True:
            for number in range(2):
                output.write(tmp_path, number)

    for _ in range(KILLS):
        child = in_child(write_on)
        time.sleep(generator.uniform(0, 4 * seconds))
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        assert_whole(tmp_path, output)


@OUTPUTS
@pytest.mark.parametrize("room", [0, 100, 200_000])
def test_out_of_room_the_earlier_stays(tmp_path: Path, output: Output, room: int) -> None:
    output.write(tmp_path, 0)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        output.write(tmp_path, 1)

    assert status_of(in_child(write)) == 1
    assert output.read(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == output.names


@OUTPUTS
def test_writers_at_once_leave_one_of_their_versions_and_readers_see_no_other(
    tmp_path: Path, output: Output
) -> None:
    output.write(tmp_path, 0)

    def write_on() -> None:
        for number in range(12):
            try:
                output.write(tmp_path, number % 2)
            except SamtrtError as error:
                if "another process is writing" not in str(error):
                    os._exit(3)

    children = [in_child(write_on) for _ in range(3)]
    while children:
        output.read(tmp_path)
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            assert status == 0
            children.remove(child)
    assert_whole(tmp_path, output)


@pytest.mark.parametrize("output", [ENGINE, PARAMETERS], ids=["engine", "parameters"])
def test_the_second_of_two_builds_is_told(tmp_path: Path, output: Output) -> None:
    data = next(tmp_path / name for name in output.names if not name.endswith(".json"))
    with files._claimed(data, alone=True), pytest.raises(SamtrtError) as caught:
        output.write(tmp_path, 0)
    assert f"another process is writing {data}; wait until" in str(caught.value)
    output.write(tmp_path, 0)
    assert output.read(tmp_path) == 0


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "mask.png"
    with replacing(target) as first:
        first.write_text("first")
        with replacing(target) as second:
            second.write_text("second")
            assert first != second
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "mask.png"
    for number in range(2):
        files._temporary_name(target, number).write_text("left")
    with replacing(target) as path:
        path.write_text("whole")
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["m" * 251 + ".png", "é" * 125 + ".png", "m." + "p" * 253, "m"])
def test_any_name_that_the_disk_takes(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as path:
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_system_without_locks_is_written_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    files._warn_of_no_locks.cache_clear()
    for number in range(2):
        write_one_engine(tmp_path, number)
        assert ENGINE.read(tmp_path) == number
    assert caplog.text.count("has no locks") == 1


def test_a_link_in_the_temporary_files_place_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    target = tmp_path / "out" / "mask.png"
    target.parent.mkdir()
    for link in (Path.symlink_to, Path.hardlink_to):
        temporary = files._temporary_name(target, 0)
        link(temporary, precious)
        with pytest.raises(SamtrtError, match="cannot write"), replacing(target) as path:
            path.write_text("ours")
        assert precious.read_text() == "precious"
        temporary.unlink()


def test_the_mode_is_the_users(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_one_engine(tmp_path, 0)
        save_parameters(SETS[0], tmp_path)
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_only_the_writes_own_errors_say_cannot_write(tmp_path: Path) -> None:
    target = tmp_path / "mask.png"
    with pytest.raises(FileNotFoundError), replacing(target):
        (tmp_path.parent / "no picture").read_bytes()
    with pytest.raises(OSError, match="libmissing"), replacing(target):
        raise OSError("libmissing.so: cannot open shared object file")
    with (
        pytest.raises(SamtrtError, match=r"cannot write .*mask\.png: No space left"),
        writing(target),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(SamtrtError, match=r"cannot write .*: Is a directory"):
        target.mkdir()
        (target / "full").touch()
        with replacing(target) as path:
            path.write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {"mask.png"}


def test_an_error_of_the_build_is_not_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="libmissing"), writing_engine(tmp_path):
        raise OSError(errno.ENOENT, "No such file or directory", "/lib/libmissing.so")
    assert list(tmp_path.iterdir()) == []


def test_a_file_read_whole_does_not_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    content = read_whole(path)
    os.truncate(path, 3)
    assert content == b"0123456789" and read_whole(path) == b"012"

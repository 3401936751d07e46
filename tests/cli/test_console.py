"""How scripts end: an exit status and at most one line."""

import io
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scripts import EXAMPLES

from samtrt.cli.parts.segment import Mask, StageTimes, print_masks, print_times
from samtrt.console import ProgressBar, one_line, progress_steps, run_script, track
from samtrt.errors import SamtrtError

SCRIPT = """
import sys
from samtrt.console import run_script
def main():
    for i in range({lines}):
        print(i)
sys.exit(run_script(main))
"""


def test_success_and_status() -> None:
    assert run_script(lambda: None) == 0
    assert run_script(lambda: 3) == 3


def test_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print("so far")
        raise SamtrtError("what happened; what to do")

    assert run_script(main) == 1
    assert capsys.readouterr() == ("so far\n", "error: what happened; what to do\n")


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert run_script(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)


@pytest.mark.parametrize("lines", [10, 100_000])
def test_reader_that_goes_away(lines: int) -> None:
    command = [sys.executable, "-c", SCRIPT.format(lines=lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [[], ["-u"]])
def test_full_disk_under_the_output(buffering: list[str]) -> None:
    command = [sys.executable, *buffering, "-c", SCRIPT.format(lines=10)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1
    assert result.stderr == "error: No space left on device; make room, or write elsewhere\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_console_of_any_encoding(encoding: str) -> None:
    """What it cannot encode is escaped, and so are a name's bytes that are no text."""
    script = (
        "import os, sys; from samtrt.console import run_script\n"
        "def main(): print('0…1 é', os.fsdecode(b'caf\\xe9'))\n"
        "sys.exit(run_script(main))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = "0…1 é caf\udce9\n".encode(encoding, "backslashreplace")
    assert done.stdout.replace(b"\r\n", b"\n") == expected


def test_names_do_not_break_a_line_or_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert one_line("a\nb\x1b[2Jc\udce9 日本.png") == r"a\nb\x1b[2Jc\udce9 日本.png"

    def main() -> None:
        raise SamtrtError("no picture at new\nline.png; give another")

    assert run_script(main) == 1
    assert capsys.readouterr().err == "error: no picture at new\\nline.png; give another\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_stderr_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_steps_are_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_steps(2) as announce:
        announce("first")
        announce("second")
    assert capsys.readouterr() == ("", "[1/2] first\n[2/2] second\n")


def test_steps_are_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_stderr_a_terminal(monkeypatch)
    with progress_steps(2) as announce:
        announce("first [bold]")
        announce("second")
    drawn = terminal.getvalue()
    assert "0/2" in drawn and "2/2" in drawn and "second" in drawn
    assert "[1/2]" not in drawn


def test_a_bar_never_goes_back_and_prints_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_stderr_a_terminal(monkeypatch)
    with ProgressBar(4) as bar:
        bar.advance_to(3)
        bar.advance_to(1)
        assert bar.done == 3
        bar.print_line("a line [red]")
    assert "a line [red]\n" in terminal.getvalue()


def test_no_bar_where_a_terminal_cannot_draw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_stderr_a_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress_steps(1) as announce:
        announce("only")
    assert terminal.getvalue() == "[1/1] only\n"


def test_a_loop_tells_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 6)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(track("abcde", "checking", 5)) == list("abcde")
    assert capsys.readouterr().err == "checking: 1/5\nchecking: 3/5\n"


def test_a_short_loop_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_stderr_a_terminal(monkeypatch)
    assert list(track("abc", "checking", 3, delay=60)) == list("abc")
    assert terminal.getvalue() == ""
    assert list(track("abc", "checking", 3)) == list("abc")
    assert "checking" in terminal.getvalue()


@pytest.mark.parametrize("program", [["-m", "samtrt"], [str(EXAMPLES / "run.py")]])
def test_interrupted_while_it_is_imported(program: list[str], tmp_path: Path) -> None:
    """Which takes longer than anything else in the first second."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'samtrt.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(EXAMPLES.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *program, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("width", [20, 40, 200])
def test_tables_in_narrow_terminals(width: int) -> None:
    """Every number is there, whole, whatever the width."""
    stream = io.StringIO()
    times = StageTimes()
    times.seconds = {"resize, normalise, pad": 1.2345, "image encoder": 6.5}
    pixels = np.zeros((1000, 2000), bool)
    pixels[100:900, 300:1900] = True
    console = Console(file=stream, width=width)
    print_masks(console, [Mask(pixels, 0.875)])
    print_times(console, times)
    drawn = stream.getvalue()
    for text in ("0.875", "1,280,000 px", "64.00%", "300 100 1899 899", "6,500.0", "7,734.5"):
        assert text in drawn, text
    assert "…" not in drawn
    assert width < 80 or "┃" in drawn

"""How scripts end: an exit status and at most one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from samtrt.console import run_script
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

"""A few kills of the commands that write most, and whether the harness sees a loss.

``kill_campaign.py`` makes as many as one likes, of every command.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_harness
import pytest
from kill_campaign import RECORD, table
from kill_harness import Trial
from writing_commands import COMMANDS, Command, Reference, read_same

from benchmarks.record import ROOT
from samtrt.files import replacing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its timer is Linux's")

QUICK = ("convert", "build", "run", "everything")


def run_campaign(output: Path, kills: int, *commands: str) -> dict[str, Any]:
    command = [sys.executable, ROOT / "tests/kills/kill_campaign.py", "--kills", str(kills)]
    done = subprocess.run(
        [*command, "--output", output, "--only", *commands], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows: dict[str, Any] = json.loads(output.read_text())["commands"]
    assert set(rows) == set(commands)
    for row in rows.values():
        assert row["kills"] > 0 and row["faults"] == []
        assert row["kills"] == row["earlier"] + row["new"] + row["nothing"]
        assert row["two_at_once"] > 0 and row["out_of_room"] > 0
    return rows


def test_killed_twice_at_once_and_out_of_room_nothing_is_lost(tmp_path: Path) -> None:
    rows = run_campaign(tmp_path / "kills.json", 8, *QUICK)
    assert sum(row["while_writing"] for row in rows.values()) > 2


@pytest.mark.slow
def test_the_other_commands(tmp_path: Path) -> None:
    run_campaign(tmp_path / "kills.json", 8, *sorted(set(COMMANDS) - set(QUICK)))


def careless(argv: list[str]) -> None:
    """Writes one file as it should be and one in place, a byte at a time."""
    output, version = Path(argv[1]), argv[2].encode()
    with replacing(output / "whole") as path:
        path.write_bytes(version * 5000)
    with (output / "in_place").open("wb", buffering=0) as file:
        for _ in range(5000):
            file.write(version)


def test_the_harness_sees_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_harness, "run_command", careless)
    command = Command("careless", 1, lambda _, o, v: [o, v], read_same)
    trial = Trial(command, None, tmp_path)  # type: ignore[arg-type]  # it has no inputs
    for _ in range(20):
        trial.kill()
    assert trial.outcome.kills > 5
    assert any("in_place is of neither run" in fault for fault in trial.outcome.faults)
    assert not any("whole is of neither" in fault for fault in trial.outcome.faults)


def test_the_harness_sees_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaving(argv: list[str]) -> None:
        careless(argv)
        (Path(argv[1]) / f".left-{argv[2]}").touch()

    def refuse_to_read(_: object, output: Path, reference: Reference) -> int:
        return 0 if output.exists() and reference else 1

    monkeypatch.setattr(kill_harness, "run_command", careless)
    command = Command("leaving", 1, lambda _, o, v: [o, v], refuse_to_read)
    trial = Trial(command, None, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(kill_harness, "run_command", leaving)
    trial.run_whole(1)
    faults = "; ".join(trial.outcome.faults)
    assert "left after the next run: ['.left-1']" in faults
    assert "the next run wrote another version" in faults


def test_the_table_is_the_records_and_nothing_is_lost() -> None:
    record = json.loads(RECORD.read_text("utf-8"))
    assert table(record) in (ROOT / "docs/reliability.md").read_text("utf-8")
    rows = record["commands"].values()
    assert set(record["commands"]) == set(COMMANDS)
    assert sum(row["kills"] for row in rows) >= 500
    assert not any(row["faults"] for row in rows)

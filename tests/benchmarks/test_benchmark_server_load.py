"""The load of honest and hostile clients: what it takes for a failure, and what it says."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import server_load  # noqa: E402
from benchmarks.hostile_clients import KINDS  # noqa: E402
from benchmarks.record import with_table  # noqa: E402

RECORD: dict[str, Any] = {
    "environment": {"cpu": "a processor"},
    "seconds": 3600,
    "honest": {
        "clients": 4,
        "right": 1234,
        "wrong": [],
        "answers": {"200": 1300, "503": 7},
        "times": {"/embed": {"count": 1300, "p50_ms": 10.4, "p99_ms": 99.6, "max_ms": 1234.0}},
    },
    "hostile": {"bombs": {"413": 5}},
    "harmful": {},
    "unanswered": [],
    "failures": [],
    "memory_mib": {"server_first_half": 800, "server_second_half": 850, "decoders": 300},
    "pending_at_the_end": 0,
    "ready_at_the_end": 200,
    "status": -15,
    "tracebacks": 0,
}


def test_a_good_run_has_no_fault() -> None:
    assert server_load.verdict(RECORD) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("honest", "wrong"), ["masks of picture 3"], "wrong answers"),
        (("honest", "wrong"), ["POST everything: 504 {}"] * 2, "refused: 2 × POST everything: 504"),
        (("honest", "right"), 0, "no honest answer"),
        (("harmful",), {"500": 1}, "no client should see"),
        (("unanswered",), ["honest 1"], "without an answer"),
        (("failures",), ["honest 1: ReadTimeout"], "that failed"),
        (("memory_mib", "server_second_half"), 950, "memory grew"),
        (("pending_at_the_end",), 1, "work left"),
        (("ready_at_the_end",), 503, "not ready"),
        (("status",), -9, "SIGTERM"),
        (("tracebacks",), 1, "tracebacks"),
    ],
)
def test_every_fault_is_told(path: tuple[str, ...], value: Any, words: str) -> None:
    record = deepcopy(RECORD)
    place = record
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (fault,) = server_load.verdict(record)
    assert words in fault


def test_table() -> None:
    lines = server_load.table(RECORD).splitlines()
    assert "60 minutes, 4 honest clients beside 1 hostile ones on a processor" in lines[0]
    assert "| `/embed` | 1,300 | 10 ms | 100 ms | 1,234 ms |" in lines
    (hostile,) = [line for line in lines if "megapixels" in line]
    assert hostile.endswith("| 413: 5 |")
    assert lines[-1] == "What did not hold: nothing."


def test_memory_is_judged_without_the_cache() -> None:
    memory = {"server_first_half": 500, "server_second_half": 900}
    assert server_load.grew(memory) == "500 to 900 MiB"
    assert not server_load.grew(memory | {"cache_first_half": 100, "cache_second_half": 480})


def test_outcomes_are_harmless_or_failures() -> None:
    assert not server_load.HARMLESS & {"500", "no answer", "answered"}
    assert all(kind.__doc__ for kind in KINDS)


def test_the_record_of_an_hour() -> None:
    path = ROOT / "benchmarks" / "results" / "server_hour.json"
    record = json.loads(path.read_text("utf-8"))
    assert record["seconds"] >= 3600 and record["honest"]["right"] > 10_000
    assert server_load.different(record) == []
    for name in ("harmful", "unanswered", "failures", "tracebacks", "pending_at_the_end"):
        assert not record[name], name
    assert (record["ready_at_the_end"], record["status"]) == (200, -15)
    assert set(record["hostile"]) == {kind.__name__ for kind in KINDS}
    text = server_load.DOCUMENT.read_text("utf-8")
    assert with_table(text, "server load", server_load.table(record)) == text

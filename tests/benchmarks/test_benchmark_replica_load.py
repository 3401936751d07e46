"""Replicas under too much load: what counts as a failure, and what the record says."""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import replica_load  # noqa: E402
from benchmarks.record import with_table  # noqa: E402
from benchmarks.server_load import DOCUMENT  # noqa: E402

RECORD: dict[str, Any] = {
    "environment": {"cpu": "a processor"},
    "command": "python benchmarks/replica_load.py",
    "seconds": 3600,
    "workers": 2,
    "store": True,
    "capacity_per_second": 20.0,
    "arrived": 108_000,
    "arrived_per_second": 30.0,
    "unsent": 3,
    "killed": 59,
    "outcomes": {"embed 200": 10, "masks 200": 20, "masks 503": 5},
    "wrong": [],
    "lost": [],
    "answered": {"count": 30, "p50_ms": 20.0, "p99_ms": 150.0, "max_ms": 900.0},
    "front_memory_mib": 300,
    "front_memory_slope_mb_per_hour": 0.4,
}


def test_a_good_run_has_no_fault() -> None:
    assert replica_load.verdict(RECORD) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"wrong": ["masks of picture 1"] * 2}, "2 × masks of picture 1"),
        ({"lost": ["masks: ReadError"]}, "1 × masks: ReadError"),
        ({"killed": 0}, "no replica was killed"),
        ({"answered": {**RECORD["answered"], "p99_ms": 201.0}}, "201 and 20 ms"),
        ({"front_memory_slope_mb_per_hour": 1.5}, "1.5 MB an hour"),
    ],
)
def test_faults_are_told(change: dict[str, Any], fault: str) -> None:
    (found,) = replica_load.verdict({**RECORD, **change})
    assert fault in found
    short = {**RECORD, "seconds": 180, "front_memory_slope_mb_per_hour": 400.0}
    assert replica_load.verdict(short) == []  # pools still fill


def test_the_table_counts_answers_by_their_status() -> None:
    text = replica_load.table(RECORD)
    assert "| answered 200 | 30 |" in text and "| answered 503 | 5 |" in text
    assert "60 minutes, 2 replicas with a store" in text


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (httpx.Response(200, json={"masks": [{"segmentation": {"counts": "right"}}]}), "right"),
        (httpx.Response(200, json={"masks": [{"segmentation": {"counts": "other"}}]}), "wrong"),
        (httpx.Response(503, headers={"Retry-After": "1"}), "right"),
        (httpx.Response(503), "wrong"),
        (httpx.Response(404), "right"),
        (httpx.Response(500, text="no"), "wrong"),
        (httpx.ReadError("gone"), "lost"),
    ],
)
def test_answers_are_judged(
    answer: "httpx.Response | Exception", outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: Any = SimpleNamespace(masks=[["right"]], files=[b""], embeddings=[b""])
    monkeypatch.setattr(replica_load, "PICTURES", 1)
    monkeypatch.setattr(replica_load, "MIX", {"masks": 1.0})

    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask() -> replica_load.Load:
        transport = httpx.MockTransport(handle)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            load = replica_load.Load(client, expected)
            load.ids[0] = "a"
            await load.one()
            return load

    load = asyncio.run(ask())
    assert (len(load.wrong), len(load.lost)) == (outcome == "wrong", outcome == "lost")


def test_memory_that_grows_is_seen() -> None:
    samples = [(float(second), 10**8 + 1000 * second) for second in range(100)]
    assert replica_load.slope(samples) == pytest.approx(3.6, rel=1e-3)


def test_the_documents_table_is_the_records() -> None:
    path = ROOT / "benchmarks/results/replicas.json"
    record = json.loads(path.read_text("utf-8"))
    assert not record["wrong"] and not record["lost"] and record["killed"]
    text = DOCUMENT.read_text("utf-8")
    assert with_table(text, "replica load", replica_load.table(record)) == text

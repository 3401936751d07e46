"""A few seeded cases of every target, and whether the harness sees what it looks for.

``campaign.py`` runs as many as one likes, in processes with bounded memory.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import campaign
import harness
import numpy as np
import pytest
from campaign import CODE, RECORD, plan, table
from faulty_targets import TARGETS as FAULTY
from harness import FAULTS, HANG, REFUSED, TRACEBACK, WRONG, Worker, run_case
from mutations import mutated, mutated_head, mutated_json, resealed_png
from targets import TARGETS, pictures

from benchmarks.record import ROOT, source_sha256
from samtrt.errors import InputError
from samtrt.pictures.reading import load_image

CASES = 6  # for each share of a target
MOST = 60


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * target.is_slow) for n, target in TARGETS.items()],
)
def test_target(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    case = target.open(tmp_path)
    outcomes: Counter[str] = Counter()
    for number in range(min(CASES * target.share, MOST)):
        outcome, detail = run_case(target, case, number)
        assert outcome not in FAULTS, f"{outcome} in case {number}: {detail}"
        outcomes[outcome] += 1
    assert outcomes[REFUSED] >= target.least_refused * outcomes.total()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker("faulty_targets")
    yield worker
    worker.close()


SEEN = {
    "refuse": (REFUSED, "is no input; give another"),
    "refuse_in_lines": (TRACEBACK, "this is"),
    "fail": (TRACEBACK, "nobody foresaw it"),
    "accept_another": (WRONG, "other pixels"),
    "hang": (HANG, ""),
    "crash": (TRACEBACK, "status -11"),
    "take_all_memory": (TRACEBACK, "MemoryError"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_the_harness_sees(worker: Worker, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(harness, "CPU_SECONDS", 0.5)
    answer = worker.run(name, 1)
    outcome, detail = SEEN[name]
    assert answer["outcome"] == outcome and detail in answer["detail"]
    if name == "refuse":  # the same case elsewhere is the same
        case = FAULTY[name].open(Path())
        assert run_case(FAULTY[name], case, 1) == (outcome, answer["detail"])
        assert run_case(FAULTY[name], case, 2) != (outcome, answer["detail"])


def test_mutations_are_seeded_and_change_something() -> None:
    content = bytes(range(256)) * 4
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nbody"
    text = json.dumps({"a": [1, {"b": "c"}], "d": {"e": 2.5}})
    changed: Counter[str] = Counter()
    for seed in range(200):
        one, two = (np.random.default_rng(seed) for _ in range(2))
        assert mutated(content, one, [content]) == mutated(content, two, [content])
        assert mutated_head(request, one) == mutated_head(request, two)
        found = mutated_json(text, one)
        assert found == mutated_json(text, two)
        changed["bytes"] += mutated(content, one) != content
        changed["head"] += mutated_head(request, one) != request
        changed["json"] += found != text
    assert min(changed.values()) > 150


def test_a_png_with_its_checksums_put_right_is_read() -> None:
    content = pictures("PNG")[0]
    assert resealed_png(content) == content
    at = content.index(b"IHDR") + 4 + 8 + 4  # interlace method, then the checksum
    other = content[:at] + bytes(5) + content[at + 5 :]
    with pytest.raises(InputError):
        load_image(other)
    np.testing.assert_array_equal(load_image(resealed_png(other)), load_image(content))


def test_a_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    name, output = "pictures: PPM", tmp_path / "fuzz.json"
    cases = plan(5000)[name]
    assert 100 < cases < 200
    entry = {
        "code_sha256": source_sha256(names=CODE), "target": name, "first": 0, "end": 100,
        "outcomes": {REFUSED: 100}, "cpu_seconds": 77.0, "faults": [],
    }  # fmt: skip
    other = {**entry, "code_sha256": "0" * 64, "first": 100, "end": cases, "cpu_seconds": 99.0}
    lines = [json.dumps(entry), json.dumps(other), json.dumps(entry)[:50]]  # the last is cut short
    output.with_suffix(".journal").write_text("\n".join(lines))
    command = [sys.executable, Path(campaign.__file__), "--only", name, "--cases", "5000"]
    command += ["--processes", "1", "--output", output]  # of the one chunk that is left
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(output.read_text())["targets"][name]
    assert row["cases"] == cases and row[REFUSED] >= 100 and row["slowest_cpu_seconds"] == 77.0
    assert [path.name for path in tmp_path.iterdir()] == ["fuzz.json"]


def test_the_table_is_the_records_and_has_no_fault() -> None:
    record = json.loads(RECORD.read_text("utf-8"))
    assert table(record) in (ROOT / "docs/reliability.md").read_text("utf-8")
    rows = record["targets"]
    assert set(rows) == set(TARGETS)
    assert sum(row["cases"] for row in rows.values()) >= 100_000
    assert [(name, fault) for name in rows for fault in FAULTS if rows[name][fault]] == []

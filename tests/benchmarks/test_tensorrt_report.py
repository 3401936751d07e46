"""What README.md and docs/tensorrt.md say of TensorRT is what the record says."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import tensorrt_report as report  # noqa: E402
from benchmarks.record import read_record  # noqa: E402

RECORD = read_record(report.RECORD)


def cells(table: str, text: str) -> list[str]:
    """Of the first row with that text."""
    line = next(line for line in table.splitlines() if text in line)
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_documents_show_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tensorrt_report.py", "--check"])
    report.main()  # (it exits where a document shows something else)
    readme, document = (path.read_text("utf-8") for path in report.DOCUMENTS)
    assert all(f"<!-- {part}: begin -->" in document for part in report.parts(RECORD))
    assert "<!-- tensorrt engines: begin -->" in readme


def test_a_document_that_says_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "other.md"
    document.write_text("<!-- tensorrt demo: begin -->\n<!-- tensorrt demo: end -->\n")
    monkeypatch.setattr(report, "DOCUMENTS", (document,))
    monkeypatch.setattr(sys, "argv", ["tensorrt_report.py", "--check"])
    with pytest.raises(SystemExit, match=r"^error: not as in the record: other\.md$"):
        report.main()
    monkeypatch.setattr(sys, "argv", ["tensorrt_report.py"])
    report.main()
    assert report.demo(RECORD) in document.read_text("utf-8")


def test_the_tables_have_the_records_figures() -> None:
    speeds = report.speeds(RECORD)
    assert cells(speeds, "plugins: all")[2:] == [
        *("1", "25.6 s", "8.54", "5.36", "10.16", "4.53", "7,061", "1.50e-03", "0.82")
    ]  # 45.781 / 8.541, 46.004 / 10.164 (of another run); 1.5010 / 1.8232
    four = next(line for line in speeds.splitlines() if "plugins: all  " in line and " 4 |" in line)
    assert cells(four, "plugins")[4:6] == ["8.54", "5.36"]  # 34.167 / 4
    assert cells(speeds, "`cuda` backend")[3:6] == ["–", "8.43", "5.43"]
    assert "of an earlier run on another H200" in speeds
    errors = report.errors(RECORD)
    assert cells(errors, "plugins: all, batch 1")[1:3] == ["8.04e-03", "1.18e-03"]
    assert cells(errors, "plugins: all, batch 4")[1:3] == ["8.64e-03", "1.17e-03"]
    demo = report.demo(RECORD)
    assert cells(demo, "worst mask") == ["parity gate: worst mask", "0.9868", "0.98"]
    assert cells(demo, "| parity gate ")[1] == "passed"
    assert "1 click" in demo
    (entry,) = RECORD["demo"]
    ended = {name: each for name, each in entry.items() if name != "evaluation"}
    gate_alone = report.demo(RECORD | {"demo": [ended]})
    assert cells(gate_alone, "| parity gate ")[1] == "passed"
    assert "1 click" not in gate_alone
    layers = report.layers(RECORD)
    assert cells(layers, "attention of grids")[1:] == ["4", "0.650"]  # 0.1652 + 0.1621 + 0.162 + …
    assert cells(layers, "attention of windows")[1] == "28"
    assert cells(layers, "together")[1:] == ["173", "9.436"]


def test_metas_row_is_of_the_same_run_where_that_has_one() -> None:
    (meta,) = (row for row in RECORD["rows"] if row["encoder"] == report.META)
    engine = RECORD["rows"][0]
    assert engine["run"] != meta["run"]
    twice = {
        name: time | {"p50_ms": 2 * time["p50_ms"]} for name, time in engine["timings"].items()
    }
    own = meta | {"run": engine["run"], "timings": twice}
    speeds = report.speeds(RECORD | {"rows": [engine, own]})
    assert cells(speeds, "plugins: all")[5] == "2.00"
    assert "eager, fp16, of the same run; " in speeds
    assert cells(report.speeds(RECORD | {"rows": [engine, meta, own]}), "plugins: all")[5] == "2.00"


def test_the_record_says_what_a_user_types() -> None:
    text = json.dumps(RECORD)
    assert not re.findall(r"[\" ](/[^\" ]*|\.\./[^\" ]*)", text)  # no path of a machine
    for run in RECORD["runs"]:
        assert run["command"].startswith("python benchmarks/tensorrt_engines.py ")
        assert run["tensorrt"] == "8.6.0"
    (demo,) = RECORD["demo"]
    assert demo["parity"]["status"] == "passed"  # docs/tensorrt.md says what that means

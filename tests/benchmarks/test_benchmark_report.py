"""The tables that documents take from benchmark records, and the benchmark's refusals."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import block_for
from PIL import Image

from samtrt.errors import InputError
from samtrt.reports.benchmarking import plot_throughput

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import encoder, report  # noqa: E402
from benchmarks.record import Row, read_record, with_table  # noqa: E402


def row(encoder: str, batch_size: int, single: float, sustained: float, **more: Any) -> Row:
    """A row with those medians."""
    return {
        "model": "vit_h",
        "encoder": encoder,
        "precision": "fp16",
        "batch_size": batch_size,
        "relative_l2": 1.6e-3,
        "run": "a",
        "timings": {"single": {"p50_ms": single}, "sustained": {"p50_ms": sustained}},
        **more,
    }


def record(*rows: Row, runs: str = "a") -> dict[str, Any]:
    machine = {
        "cpu": "a processor",
        "torch_threads": 2,
        "gpu": "NVIDIA H200",
        "packages": {"torch": "2.11.0"},
        "python": "3.12.3",
    }
    return {
        "note": "seeded random weights",
        "protocols": {"single": "a rested GPU", "sustained": "back to back"},
        "runs": [{"id": run, "environment": machine, "command": f"bench {run}"} for run in runs],
        "rows": list(rows),
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_row_a_contestant_and_protocol_and_a_column_a_batch_size() -> None:
    refused = row("fast-bf16", 1, 0, 0) | {"refused": "relative L2 0.3: not timed"}
    del refused["timings"]
    text = report.table(
        record(
            row("samtrt", 1, 9.6, 10.8),
            row("samtrt", 4, 36.8, 44.0),
            row("eager-fp16", 1, 43.9, 48.6),
            refused,
        )
    )
    lines = text.splitlines()
    assert cells(lines[2]) == [
        *("ViT-H", "**samtrt**", "fp16", "single"),
        *("9.60", "9.20", "–", "1.00", "1.6e-03"),
    ]
    assert cells(lines[3])[3:8] == ["single", "43.90", "–", "–", "4.57"]
    assert cells(lines[4])[3:8] == ["sustained", "10.80", "11.00", "–", "1.00"]
    assert cells(lines[5])[3:8] == ["sustained", "48.60", "–", "–", "4.50"]
    assert "segment_anything_fast" not in text  # what was refused has no time to show
    for part in ("NVIDIA H200", "seeded random weights", "single: a rested GPU", "`bench a`"):
        assert part in lines[-1]


def test_a_peer_is_compared_with_our_row_of_its_own_run() -> None:
    text = report.table(
        record(
            row("samtrt", 1, 10.0, 11.0),
            row("samtrt", 1, 10.5, 11.5, run="b"),
            row("eager-fp16", 1, 42.0, 46.0, run="b"),
            runs="ab",
        )
    )
    assert cells(text.splitlines()[2])[4:7:2] == ["10.00", "1.00"]  # the first run's stands
    assert cells(text.splitlines()[3])[4:7:2] == ["42.00", "4.00"]  # by 10.5
    assert "took single 10.00, 10.50; sustained 11.00, 11.50 ms" in text
    assert "`bench a`, then `bench b`" in text


def test_energy_is_power_times_time_of_the_best_batch_size() -> None:
    rows = [row("samtrt", 1, 5.0, 6.0), row("samtrt", 4, 20.0, 22.0), row("eager-fp16", 1, 40, 44)]
    for each, power in zip(rows, (690.0, 700.0, None), strict=True):
        each["timings"]["sustained"]["power_w"] = power
    energies = [cells(line)[6] for line in report.table(record(*rows)).splitlines()[2:6]]
    assert energies == ["–", "–", "3,850", "–"]  # 700 W · 5.5 ms; the rested GPU's is not sampled


def test_clock_power_start_and_memory_are_told() -> None:
    ours = row("samtrt", 1, 10.0, 11.0, startup_cold_s=9.87, startup_warm_s=5.43)
    ours["memory_above_weights_mb"] = 217.8
    ours["timings"]["sustained"] |= {"sm_clock_mhz": 1612.0, "power_w": 695.4}
    text = report.table(record(ours))
    assert "at 1612 MHz and 695 W" in text
    assert "9.9 s with empty kernel caches, 5.4 s with full ones; 218 MB above" in text


def test_the_plot_has_a_panel_a_protocol(tmp_path: Path) -> None:
    made = record(row("samtrt", 1, 10.0, 12.5), row("eager-fp16", 1, 40.0, 50.0))
    panels = report.throughput(made)
    assert list(panels.values()) == [
        {"samtrt fp16": {1: 100.0}, "segment_anything fp16": {1: 25.0}},
        {"samtrt fp16": {1: 80.0}, "segment_anything fp16": {1: 20.0}},
    ]
    plot_throughput(tmp_path / "plot.png", panels, "title", "environment")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1500


def test_only_the_marked_part_of_a_document_changes() -> None:
    document = "before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n"
    once = with_table(document, "table", "new")
    assert once == document.replace("old", "new")
    assert with_table(once, "table", "new") == once
    with pytest.raises(InputError, match="no <!-- other: begin -->"):
        with_table(document, "other", "new")


@pytest.mark.parametrize(
    "path",
    [*sorted(report.RESULTS.glob("h200_vit_h*.json")), *report.PARTS],
    ids=lambda path: path.stem,
)
def test_committed_records_are_tables(path: Path) -> None:
    loaded = read_record(path)
    text = report.table(loaded)
    assert report.timed_rows(loaded)
    for row in report.timed_rows(loaded):
        assert row["relative_l2"] <= 2 * row["meta_relative_l2"]
        for protocol in loaded["protocols"]:
            assert f"{report.per_image(row, protocol):.2f}" in text


def test_documents_show_the_committed_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    report.main()  # (it exits where a document shows something else)
    assert capsys.readouterr().out.count("ViT-H") >= 4
    for part in report.PARTS.values():
        assert any(f"<!-- {part}: begin -->" in path.read_text() for path in report.DOCUMENTS)


def test_the_readmes_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need a GPU; here they are parsed, and the second reads what the first writes."""
    measure, show = (shlex.split(line) for line in block_for(__file__, "README.md"))
    assert measure[:2] == ["python", "benchmarks/encoder.py"]
    assert show[:2] == ["python", "benchmarks/report.py"]
    written = encoder.parse_arguments(measure[2:])
    monkeypatch.setattr(sys, "argv", show[1:])
    assert report.parse_arguments().record == written.output
    assert written.models == ["vit_h"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "encoder.py")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: this benchmark needs an NVIDIA GPU, and there is none"

"""Writes the tables of README.md and docs/performance.md, and a plot, from a benchmark record.

    python benchmarks/report.py                                  # of records that documents show
    python benchmarks/report.py benchmarks/results/record.json   # of another: printed, and plotted

In each document, what stands between ``<!-- encoder benchmark: begin -->`` and
``<!-- encoder benchmark: end -->``, and the same of ``fp8 benchmark``, is replaced. With
``--check`` nothing is written, and the exit status says whether the documents agree with the
records.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Row, key, read_record, with_table
from samtrt.errors import SamtrtError
from samtrt.files import replacing
from samtrt.reports.benchmarking import describe, markdown_table, plot_throughput

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# What the documents show: records, and between which marks.
PARTS = {RESULTS / "h200.json": "encoder benchmark", RESULTS / "h200_fp8.json": "fp8 benchmark"}
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
OURS = "samtrt"
TITLES = {
    OURS: "**samtrt**",
    "eager-fp32": "segment_anything",
    "eager-fp16": "segment_anything",
    "compile-fp16": "torch.compile, max-autotune",
    "compile-bf16": "torch.compile, max-autotune",
    "fast-bf16": "segment_anything_fast",
}
MODELS = {"vit_b": "ViT-B", "vit_l": "ViT-L", "vit_h": "ViT-H"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "record",
        type=Path,
        nargs="?",
        help="JSON written by benchmarks/encoder.py; default: those that the documents show",
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--plot", type=Path, help="PNG to write; default: beside the record")
    return parser.parse_args()


def timed_rows(record: dict[str, Any]) -> list[Row]:
    """The first row of each contestant and batch size that has a time."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in record["rows"]:
        if "timings" in row:
            first.setdefault(key(row), row)
    return list(first.values())


def our_batch_1(record: dict[str, Any], like: Row) -> Row | None:
    """Our fp16 row at batch 1 from the run that measured ``like``: bf16 where there is none."""
    candidates = [
        row
        for row in record["rows"]
        if "timings" in row
        and (row["run"], row["model"]) == (like["run"], like["model"])
        and (row["encoder"], row["batch_size"]) == (OURS, 1)
    ]
    return min(candidates, key=lambda row: row["precision"] != "fp16", default=None)


def per_image(row: Row, protocol: str) -> float:
    """Milliseconds an image."""
    return float(row["timings"][protocol]["p50_ms"] / row["batch_size"])


def energy(row: Row, protocol: str) -> float | None:
    """Millijoules an image, by the power that was sampled; None where it was not."""
    power = row["timings"][protocol].get("power_w")
    return float(power) * per_image(row, protocol) if power else None


def table(record: dict[str, Any]) -> str:
    """The rows of a record as Markdown: milliseconds an image by batch size, by protocol."""
    rows = timed_rows(record)
    batch_sizes = sorted({row["batch_size"] for row in rows})
    contestants: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        name = (row["model"], row["encoder"], row["precision"])
        contestants.setdefault(name, {})[row["batch_size"]] = row
    header = ["model", "encoder", "precision", "protocol"]
    header += [f"batch {size}, ms/image" for size in batch_sizes]
    header += ["mJ/image", "batch 1, × ours", "relative L2 error"]
    lines = []
    for protocol in record["protocols"]:
        for (model, encoder, precision), by_batch in contestants.items():
            cells = [MODELS[model], TITLES[encoder], precision, protocol]
            cells += [
                f"{per_image(by_batch[size], protocol):.2f}" if size in by_batch else "–"
                for size in batch_sizes
            ]
            least = min(
                filter(None, (energy(row, protocol) for row in by_batch.values())), default=0
            )
            cells.append(f"{least:,.0f}" if least else "–")
            ours = our_batch_1(record, by_batch[1]) if 1 in by_batch else None
            ratio = per_image(by_batch[1], protocol) / per_image(ours, protocol) if ours else None
            cells.append(f"{ratio:.2f}" if ratio else "–")
            cells.append(f"{next(iter(by_batch.values()))['relative_l2']:.1e}")
            lines.append(cells)
    return f"{markdown_table(header, lines)}\n\n{' '.join(notes(record))}"


def notes(record: dict[str, Any]) -> Iterator[str]:
    """What the figures mean, and how they were made."""
    runs = record["runs"]
    protocols = "; ".join(f"{name}: {text}" for name, text in record["protocols"].items())
    yield f"{describe(runs[0]['environment'])}; {record['note']}."
    yield (
        f"Medians of CUDA-event times ({protocols}); mJ/image: the GPU's power under load times "
        "the time, of the batch size where it is least; error against float64."
    )
    load = next((row["timings"].get("sustained", {}) for row in timed_rows(record)), {})
    if load.get("sm_clock_mhz"):
        yield (
            f"Under sustained load our batch 1 runs at {load['sm_clock_mhz']:.0f} MHz and "
            f"{load['power_w']:.0f} W."
        )
    start = next((row for row in timed_rows(record) if "startup_cold_s" in row), None)
    if start:
        yield (
            f"{MODELS[start['model']]} batch 1, a process that reads packed parameters "
            "(`benchmarks/startup.py`; `load_sam` verifies its files as well): its first embedding "
            "after "
            f"{start['startup_cold_s']:.1f} s with empty kernel caches, "
            f"{start['startup_warm_s']:.1f} s with full ones; "
            f"{start['memory_above_weights_mb']:.0f} MB above the weights."
        )
    if len(runs) > 1:
        yield from drift(record)
    commands = ", then ".join(f"`{run['command']}`" for run in runs)
    yield f"Made by {commands}."


def drift(record: dict[str, Any]) -> Iterator[str]:
    """Our batch 1 in each of several runs: ratios are taken within one."""
    controls: dict[tuple[str, str], list[Row]] = {}
    for row in record["rows"]:
        if (row["encoder"], row["batch_size"]) == (OURS, 1) and "timings" in row:
            controls.setdefault((row["model"], row["precision"]), []).append(row)
    for (model, precision), rows in controls.items():
        if len(rows) > 1:
            times = [
                f"{protocol} {', '.join(f'{per_image(row, protocol):.2f}' for row in rows)}"
                for protocol in record["protocols"]
            ]
            yield (
                f"Measured in {len(rows)} runs, our {MODELS[model]} {precision} batch 1 took "
                f"{'; '.join(times)} ms; a peer is compared within its own run."
            )


def throughput(record: dict[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Images a second: protocol → contestant → batch size."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for protocol, text in record["protocols"].items():
        panel = panels.setdefault(f"{protocol}: {text}", {})
        for row in timed_rows(record):
            if row["model"] == "vit_h":
                name = f"{TITLES[row['encoder']].strip('*')} {row['precision']}"
                panel.setdefault(name, {})[row["batch_size"]] = 1000 / per_image(row, protocol)
    return panels


def stale_documents(
    part: str, content: str, write: bool, documents: Iterable[Path] = DOCUMENTS
) -> list[str]:
    """Documents whose part is another; they are written anew if asked."""
    stale = []
    for document in documents:
        text = document.read_text("utf-8")
        if f"<!-- {part}: begin -->" not in text:
            continue
        new = with_table(text, part, content)
        if new == text:
            continue
        stale.append(document.name)
        if write:
            with replacing(document) as temporary:
                temporary.write_text(new, "utf-8")
    return stale


def main() -> None:
    arguments = parse_arguments()
    if arguments.plot and not arguments.record:
        sys.exit("error: --plot is for one record; name it")
    stale: list[str] = []
    for path in [arguments.record] if arguments.record else PARTS:
        try:
            record = read_record(path)
        except SamtrtError as error:
            sys.exit(f"error: {error}")
        content = table(record)
        if path.resolve() in PARTS:
            stale += stale_documents(PARTS[path.resolve()], content, not arguments.check)
        panels = throughput(record)
        if any(panels.values()) and not arguments.check:
            title = "SAM ViT-H image encoder, 1024 × 1024"
            plot = arguments.plot or path.with_suffix(".png")
            plot_throughput(plot, panels, title, describe(record["runs"][0]["environment"]))
        print(content)
    if arguments.check and stale:
        sys.exit(f"error: not as in the records: {', '.join(stale)}")


if __name__ == "__main__":
    main()

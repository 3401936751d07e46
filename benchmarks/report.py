"""Writes the tables of README.md and docs/performance.md, and a plot, from a benchmark record.

    python benchmarks/report.py benchmarks/results/h200.json

In each document, what stands between ``<!-- encoder benchmark: begin -->`` and
``<!-- encoder benchmark: end -->`` is replaced. With ``--check`` nothing is written, and the exit
status says whether the documents agree with the record.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samtrt.files import replacing
from samtrt.reports.benchmarking import describe, markdown_table, plot_throughput

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- encoder benchmark: begin -->", "<!-- encoder benchmark: end -->"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
TITLES = {
    "samtrt": "**samtrt**",
    "eager-fp32": "segment_anything",
    "eager-fp16": "segment_anything",
    "compile-fp16": "torch.compile, max-autotune",
    "compile-bf16": "torch.compile, max-autotune",
    "fast-bf16": "segment_anything_fast",
}
MODELS = {"vit_b": "ViT-B", "vit_l": "ViT-L", "vit_h": "ViT-H"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="JSON written by benchmarks/encoder.py")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--plot", type=Path, help="PNG to write; default: beside the record")
    return parser.parse_args()


def table(record: dict[str, Any]) -> str:
    """The rows of a record as Markdown: milliseconds an image by batch size."""
    rows = [row for row in record["rows"] if "ms_per_image" in row]
    batch_sizes = sorted({row["batch_size"] for row in rows})
    contestants: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        key = (row["model"], row["encoder"], row["precision"])
        contestants.setdefault(key, {})[row["batch_size"]] = row
    header = ["model", "encoder", "precision"]
    header += [f"batch {size}, ms/image" for size in batch_sizes]
    header += ["relative L2 error"]
    lines = []
    for (model, encoder, precision), by_batch in contestants.items():
        cells = [MODELS[model], TITLES[encoder], precision]
        cells += [
            f"{by_batch[size]['ms_per_image']:.2f}" if size in by_batch else "–"
            for size in batch_sizes
        ]
        cells.append(f"{next(iter(by_batch.values()))['relative_l2']:.1e}")
        lines.append(cells)
    note = (
        f"{describe(record['environment'])}; {record['note']}; median of CUDA-event times, "
        f"error against float64. Made by `{record['command']}`."
    )
    return f"{markdown_table(header, lines)}\n\n{note}"


def replaced(text: str, content: str) -> str:
    """``text`` with the part between the markers replaced."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main() -> None:
    arguments = parse_arguments()
    record = json.loads(arguments.record.read_text("utf-8"))
    content = table(record)
    stale = []
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        if BEGIN not in text or END not in text:
            continue
        new = replaced(text, content)
        if new == text:
            continue
        stale.append(document.name)
        if not arguments.check:
            with replacing(document) as temporary:
                temporary.write_text(new, "utf-8")
    if arguments.check:
        sys.exit(f"error: not as in the record: {', '.join(stale)}" if stale else 0)

    throughput: dict[str, dict[int, float]] = {}
    for row in record["rows"]:
        if row["model"] == "vit_h" and "ms_per_image" in row:
            name = f"{TITLES[row['encoder']].strip('*')} {row['precision']}"
            throughput.setdefault(name, {})[row["batch_size"]] = 1000 / row["ms_per_image"]
    plot = arguments.plot or arguments.record.with_suffix(".png")
    plot_throughput(
        plot, throughput, "SAM ViT-H image encoder, 1024 × 1024", describe(record["environment"])
    )
    print(content)


if __name__ == "__main__":
    main()

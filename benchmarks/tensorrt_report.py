"""Writes the tables of README.md and docs/tensorrt.md from a record of TensorRT engines.

    python benchmarks/tensorrt_report.py

``benchmarks/tensorrt_engines.py`` makes the record. With ``--check`` nothing is written, and the
exit status says whether the documents agree with the record.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, Row, read_record
from benchmarks.report import MODELS, OURS, energy, per_image, stale_documents
from samtrt.building.parity import LIMITS
from samtrt.errors import SamtrtError
from samtrt.reports.benchmarking import describe, markdown_table

RECORD = ROOT / "benchmarks/results/h200_tensorrt.json"  # what the documents show
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/tensorrt.md")
META = "eager-fp16"
PLUGIN_LAYERS = ("attn.qkv", "attn.attention", "attn.proj", "mlp.lin1", "mlp.lin2")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, nargs="?", default=RECORD, help="JSON")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    return parser.parse_args()


def speeds(record: dict[str, Any]) -> str:
    """Every row of the record that has a time: the engines, ours, Meta's code."""
    timed = [row for row in record["rows"] if "timings" in row]
    header = ["model", "encoder, fp16", "batch", "built in", "single, ms", "speed-up"]
    header += ["sustained, ms", "speed-up", "mJ/image", "relative L2", "÷ Meta's"]
    lines = []
    for row in timed:
        meta = _meta(timed, row)
        seconds = row.get("sidecar", {}).get("build_seconds")
        cells = [MODELS[row["model"]], _title(record, row), str(row["batch_size"])]
        cells += [f"{seconds:.1f} s" if seconds else "–"]
        for protocol in record["protocols"]:
            time = per_image(row, protocol)
            cells += [f"{time:.2f}", f"{per_image(meta, protocol) / time:.2f}"]
        error = row["relative_l2"]
        power = energy(row, "sustained")
        cells += [f"{power:,.0f}" if power else "–", f"{error:.2e}"]
        cells += [f"{error / row['meta_relative_l2']:.2f}"]
        lines.append(cells)
    apart = any(_meta(timed, row)["run"] != row["run"] for row in timed)
    of_run = record["meta_run"] if apart else "the same run"
    protocols = "; ".join(f"{name}: {text}" for name, text in record["protocols"].items())
    notes = (
        f"{describe(record['runs'][0]['environment'])}; {record['note']}. Medians of an image "
        f"({protocols}); speed-up over Meta's code, eager, fp16, of {of_run}; the worst "
        "picture's error against float64, and that by the error of Meta's fp16. "
        f"{_commands(record, 'measure')} Element by element, of the batch:"
    )
    return f"{markdown_table(header, lines)}\n\n{notes}"


def errors(record: dict[str, Any]) -> str:
    """Errors of the engines, element by element."""
    header = ["encoder", "abs max", "abs mean", "abs median", "rel max", "rel mean", "rel median"]
    header += ["rel L2"]
    rows = [
        [
            f"{MODELS[row['model']]}, {_title(record, row)}, batch {row['batch_size']}",
            *(f"{error:.2e}" for error in row["statistics"].values()),
        ]
        for row in record["rows"]
        if "statistics" in row
    ]
    return markdown_table(header, rows)


def demo(record: dict[str, Any]) -> str:
    """The demo model through TensorRT, and what the parity gate says."""
    tables = []
    for entry in record["demo"]:
        parity, limits = entry["parity"], LIMITS["fp16"]
        version = entry["sidecar"]["library_version"]
        rows = [
            ["built in", f"{entry['sidecar']['build_seconds']:.1f} s", ""],
            ["parity gate: embedding off by", f"{parity['relative_l2']:.3%}",
             f"{limits.relative_l2:.3%}"],
            ["parity gate: mean mask IoU", f"{parity['mean_mask_iou']:.4f}",
             f"{limits.mean_mask_iou}"],
            ["parity gate: worst mask", f"{parity['worst_mask_iou']:.4f}",
             f"{limits.worst_mask_iou}"],
            ["parity gate", parity["status"], ""],
        ]  # fmt: skip
        if "evaluation" in entry:  # a run may have ended before it
            found = entry["evaluation"]
            scenes = f"{found['scenes']} scenes, {found['masks']} masks, mean IoU with fp32's"
            for prompt in ("1 click", "box"):
                rows.append([f"{scenes}: {prompt}", f"{found['mean_iou_against'][prompt]:.4f}", ""])
        title = f"demo model, TensorRT {version}, plugins: {entry['plugins']}"
        tables.append(markdown_table([title, "found", "limit in fp16"], rows))
    return "\n\n".join([*tables, _commands(record, "demo")])


def layers(record: dict[str, Any]) -> str:
    """What an engine's layers take, by kind."""
    tables = []
    for profile in record["profiles"]:
        sidecar = next(
            row["sidecar"]
            for row in record["rows"]
            if "sidecar" in row and profile["engine"].startswith(row["model"])
        )
        grids = sidecar["config"]["global_attn_indexes"]
        times: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for name, milliseconds in profile["layers"].items():
            kind = _kind(name, grids)
            times[kind] += milliseconds
            counts[kind] += 1
        rows = [[kind, str(counts[kind]), f"{ms:.3f}"] for kind, ms in times.most_common()]
        rows.append(["together", str(counts.total()), f"{times.total():.3f}"])
        title = f"{profile['engine']}, TensorRT's own profiler"
        tables.append(markdown_table([title, "layers", "ms"], rows))
    return "\n\n".join([*tables, _commands(record, "profile")])


def _kind(name: str, grids: list[int]) -> str:
    block, _, layer = name.removeprefix("blocks.").partition("/")
    if name == "patch_embed/proj":
        return "ours: patch_embed"
    if not name.startswith("blocks.") or layer not in PLUGIN_LAYERS:
        return "TensorRT's: patches, neck, casts, reformatting"
    if layer == "attn.attention":
        return f"ours: attention of {'grids' if int(block) in grids else 'windows'}"
    return f"ours: {layer}"


def _meta(rows: list[Row], row: Row) -> Row:
    """Meta's code with that model and one picture; of the same run where it has it."""
    like = [
        other
        for other in rows
        if (other["model"], other["encoder"], other["batch_size"]) == (row["model"], META, 1)
    ]
    return next((other for other in like if other["run"] == row["run"]), like[0])


def _title(record: dict[str, Any], row: Row) -> str:
    name: str = row["encoder"]
    if name == OURS:
        return "samtrt, `cuda` backend"
    if name == META:
        return "segment_anything"
    run = next(run for run in record["runs"] if run["id"] == row["run"])
    plugins = name.removeprefix("tensorrt-").removesuffix("-graph")
    graph = ", in a CUDA graph" if name.endswith("-graph") else ""
    return f"TensorRT {run['tensorrt']}, plugins: {plugins}{graph}"


def _commands(record: dict[str, Any], step: str) -> str:
    commands = [run["command"] for run in record["runs"] if f"engines.py {step} " in run["command"]]
    return f"Made by {', then '.join(f'`{command}`' for command in commands)}."


def parts(record: dict[str, Any]) -> dict[str, str]:
    """What stands in the documents, by the names of the marks around it."""
    return {
        "tensorrt engines": f"{speeds(record)}\n\n{errors(record)}",
        "tensorrt demo": demo(record),
        "tensorrt layers": layers(record),
    }


def main() -> None:
    arguments = parse_arguments()
    try:
        record = read_record(arguments.record)
        stale: set[str] = set()
        for name, content in parts(record).items():
            stale.update(stale_documents(name, content, not arguments.check, DOCUMENTS))
    except SamtrtError as error:
        sys.exit(f"error: {error}")
    if arguments.check and stale:
        sys.exit(f"error: not as in the record: {', '.join(sorted(stale))}")


if __name__ == "__main__":
    main()

"""What every benchmark needs once: the environment, the clock, a table and a plot."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from samtrt.files import replacing

_PACKAGES = ("torch", "triton", "tensorrt", "tensorrt-rtx-cu13", "onnxruntime", "numpy")


def environment() -> dict[str, Any]:
    """What a figure depends on: commit, processor, GPU, and the versions of what ran."""
    record: dict[str, Any] = {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "packages": _versions(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        record["gpu"] = properties.name
        record["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        record["compute_capability"] = f"{properties.major}.{properties.minor}"
        record["cuda"] = torch.version.cuda
        drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        record["driver"] = drivers.partition("\n")[0]  # (a line for each GPU)
    return record


def describe(record: Mapping[str, Any]) -> str:
    """An ``environment()`` in one line, for the head of a table."""
    processor = f"{record['cpu']}, {record['torch_threads']} threads"
    torch_version = record["packages"]["torch"]
    return f"{record.get('gpu', processor)}; torch {torch_version}, Python {record['python']}"


@dataclass(frozen=True)
class Timing:
    """Latency of one call, in milliseconds.

    Attributes:
        p50, p90: median and 90th percentile over the runs.
        best: the fastest run.
        runs: how many calls were timed.
    """

    p50: float
    p90: float
    best: float
    runs: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Timing":
        """From the time of each run."""
        times = torch.tensor(milliseconds, dtype=torch.float64)
        p50, p90 = torch.quantile(times, torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
        return cls(p50, p90, times.min().item(), len(milliseconds))


def time_calls(
    call: Callable[[int], Any],
    device: torch.device | str = "cpu",
    warmup: int = 1,
    runs: int = 100,
    seconds: float = float("inf"),
) -> Timing:
    """Times calls one by one: by CUDA events on a GPU, by the wall clock on a CPU.

    Args:
        call: is given the run's index, so that it can rotate its inputs.
        runs: at most so many runs; at least three.
        seconds: no further run begins after so many seconds.
    """
    device = torch.device(device)
    for index in range(warmup):
        call(index)
    if device.type == "cuda":
        return _time_on_gpu(call, device, runs, seconds)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (len(times) < runs and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        call(len(times))
        times.append(1e3 * (time.perf_counter() - start))
    return Timing.of(times)


def _time_on_gpu(
    call: Callable[[int], Any], device: torch.device, runs: int, seconds: float
) -> Timing:
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    while len(events) < 3 or (len(events) < runs and time.perf_counter() - begin < seconds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(len(events))
        end.record()
        events.append((start, end))
        if len(events) % 16 == 0:  # or the host runs away from the device, and `seconds` lies
            end.synchronize()
    torch.cuda.synchronize(device)
    return Timing.of([start.elapsed_time(end) for start, end in events])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table, good on a screen and in a document; numbers on the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(cell[:1] in "-0123456789" for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return f"| {' | '.join(aligned)} |"

    rule = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, numeric, strict=True)
    ]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def plot_throughput(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    title: str,
    subtitle: str,
) -> None:
    """Draws images/s by batch size as grouped bars, one colour a contestant, as a PNG.

    Args:
        panels: beside each other, by heading: contestant → batch size → images per second.
        subtitle: the environment.

    Raises:
        SamtrtError: the file cannot be written.
    """
    # Imported here: nothing else needs it, and it takes half a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 5 * len(panels), 4.5), dpi=150, layout="constrained")
    (row,) = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (heading, throughput) in zip(row, panels.items(), strict=True):
        batches = sorted({batch for by_batch in throughput.values() for batch in by_batch})
        width = 0.8 / max(1, len(throughput))
        for index, (name, by_batch) in enumerate(throughput.items()):
            places = [batches.index(batch) + (index + 0.5) * width - 0.4 for batch in by_batch]
            bars = axes.bar(places, list(by_batch.values()), width, label=name)
            axes.bar_label(bars, fmt="{:.3g}", padding=2, fontsize=8)
        axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axes.set_xlabel("batch size")
        axes.set_title(heading, fontsize=9)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("images per second")
    handles, names = row[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=4,
        title=subtitle,
        title_fontsize=7,
    )
    figure.suptitle(title, fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _commit() -> str:
    """The commit of the source tree, with ``+`` where files differ from it; empty outside git."""
    root = str(Path(__file__).resolve().parent.parent)
    commit = _output("git", "-C", root, "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if commit and changed else "")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _output(*command: str) -> str:
    """What a command prints, empty where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""

"""Benchmark records: rows, and the runs that measured them, each with its environment.

A later run may add rows where the GPU, the software and the timed code are the same. It measures
our own row again, so that every ratio is taken within one run.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from samtrt.errors import InputError
from samtrt.reports.benchmarking import environment

ROOT = Path(__file__).resolve().parent.parent
# What is timed, and what times it.
TIMED = ("samtrt/encoders/cuda", "samtrt/kernels", "benchmarks/encoder.py", "benchmarks/timing.py")
SAME = ("gpu", "driver", "cuda", "python")
SAME_PACKAGES = ("torch", "triton")

Row = dict[str, Any]


def source_sha256(root: Path = ROOT) -> str:
    """A digest of the timed code: unlike a commit, it sees what is not committed."""
    files = [
        path
        for name in TIMED
        for path in (root / name, *(root / name).rglob("*"))
        if path.suffix in (".py", ".cu", ".cuh") and path.is_file()
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def new_run(command: str) -> dict[str, Any]:
    """This machine and this code."""
    return {
        "id": uuid.uuid4().hex[:8],
        "environment": environment(),
        "source_sha256": source_sha256(),
        "command": command,
    }


def identity(run: dict[str, Any]) -> dict[str, str]:
    """What two runs of one record have in common."""
    machine = run["environment"]
    return (
        {name: machine.get(name, "") for name in SAME}
        | {name: machine["packages"].get(name, "") for name in SAME_PACKAGES}
        | {"timed code": run.get("source_sha256", "")}
    )


def read_record(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        InputError: there is none.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a benchmark record ({error})") from error
    if not isinstance(record, dict) or not record.get("runs") or "rows" not in record:
        raise InputError(f"{path} is not a record of benchmarks/encoder.py: it has no runs")
    return record


def join(record: dict[str, Any], run: dict[str, Any], note: str) -> None:
    """Adds a run to a record.

    Raises:
        InputError: its rows could not be compared with the record's.
    """
    if record["note"] != note:
        raise InputError(f"the record has {record['note']!r}, this run {note!r}; use another file")
    before, now = identity(record["runs"][0]), identity(run)
    changed = [
        f"{name} ({before[name]} → {now[name]})" for name in now if before[name] != now[name]
    ]
    if changed:
        raise InputError(
            f"the record was made with another {', '.join(changed)}; measure anew, to another file"
        )
    record["runs"].append(run)


def key(row: Row) -> tuple[Any, ...]:
    """What a row is the time of."""
    return tuple(row.get(name) for name in ("model", "encoder", "precision", "batch_size"))


def measured(record: dict[str, Any]) -> set[tuple[Any, ...]]:
    """The rows that have a time."""
    return {key(row) for row in record["rows"] if "timings" in row}

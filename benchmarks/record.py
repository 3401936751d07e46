"""Benchmark records: rows, and the runs that measured them, each with its environment.

A later run may add rows where the GPU, the software and the timed code are the same. It measures
our own row again, so that every ratio is taken within one run.
"""

import ast
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from samtrt.errors import InputError
from samtrt.files import replacing
from samtrt.reports.benchmarking import environment

ROOT = Path(__file__).resolve().parent.parent
# What is timed, and what times it.
TIMED = ("samtrt/encoders/cuda", "samtrt/kernels", "benchmarks/encoder.py", "benchmarks/timing.py")
SAME = ("gpu", "driver", "cuda", "python")
SAME_PACKAGES = ("torch", "triton")

Row = dict[str, Any]


def source_sha256(root: Path = ROOT, names: Iterable[str] = TIMED) -> str:
    """A digest of the code that is timed, or tried: unlike a commit, it sees what is uncommitted.

    It is of what stands in the files and not of where they are, so that moving them, with the
    imports that follow, leaves records valid.
    """
    files = {
        path
        for name in names
        for path in (root / name, *(root / name).rglob("*"))
        if path.suffix in (".py", ".cu", ".cuh") and path.is_file()
    }
    codes = (path.read_bytes() if path.suffix != ".py" else python_code(path) for path in files)
    digests = sorted(hashlib.sha256(code).hexdigest() for code in codes if code)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def python_code(path: Path) -> bytes:
    """A module's lines without comments on lines of their own, docstrings, and import's origins.

    Of an import the names remain, sorted; whence they come is left out.
    """
    text = path.read_text("utf-8")
    lines = text.splitlines()
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += [f"import {alias.asname or alias.name.split('.')[-1]}" for alias in node.names]
        elif not _is_docstring(node):
            continue
        assert isinstance(node, ast.stmt) and node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    kept = [line.rstrip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return "\n".join(sorted(names) + kept).encode()


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


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


def commands_of(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The commands that made the rows, in Markdown, each once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(r["command"] for r in rows.values()))


def with_table(text: str, name: str, content: str) -> str:
    """A document with the part between ``<!-- name: begin -->`` and ``… end -->`` replaced.

    Raises:
        InputError: it has no such part.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise InputError(f"the document has no {begin} … {end}")
    return f"{head}{begin}\n{content.rstrip()}\n{end}{tail}"


def write_table(document: Path, name: str, content: str) -> None:
    """``with_table`` of a file.

    Raises:
        InputError: it has no such part.
    """
    new = with_table(document.read_text("utf-8"), name, content)
    with replacing(document) as temporary:
        temporary.write_text(new, "utf-8")

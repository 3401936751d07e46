"""Mutates whatever samtrt reads, many thousand times, and counts what comes of it.

    python tests/fuzz/campaign.py --cases 100000 --output benchmarks/results/fuzz.json
    python tests/fuzz/campaign.py --report benchmarks/results/fuzz.json

The second command writes the record's table into docs/reliability.md.

Two processes at most, whose memory is bounded. An interrupted campaign goes on where it was. The
exit status is 1 where a case ended in a traceback, a hang or a wrong output; each is printed, and
``--only TARGET --case N`` runs it again, here, with a traceback.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from harness import FAULTS, OUTCOMES, Worker, run_case
from targets import TARGETS

from benchmarks.record import ROOT, commands_of, source_sha256, write_table
from samtrt.console import ProgressBar, run_script
from samtrt.errors import InputError
from samtrt.files import write_json
from samtrt.reports.benchmarking import describe, environment, markdown_table

DOCUMENT = ROOT / "docs" / "reliability.md"
RECORD = ROOT / "benchmarks" / "results" / "fuzz.json"  # what the document shows
CODE = ("samtrt", "tests/fuzz/mutations.py", "tests/fuzz/targets.py")
CHUNK = 100  # cases between two entries of the journal
SECONDS_A_LINE = 20.0
MOST_DETAILS = 50  # of faults, in the record

Chunk = tuple[str, int, int]  # target, first case, one past the last


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets (default: 10000)")
    parser.add_argument("--output", type=Path, help="JSON record; only the chosen targets' change")
    parser.add_argument("--only", nargs="+", metavar="TARGET", choices=TARGETS, default=[])
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--case", type=int, metavar="N", help="runs that case of --only, here")
    parser.add_argument("--report", type=Path, metavar="RECORD", help="writes its table, runs none")
    arguments = parser.parse_args()
    if arguments.case is not None and len(arguments.only) != 1:
        parser.error("--case needs one target: --only TARGET")
    return arguments


def plan(cases: int) -> dict[str, int]:
    """How many cases each target gets; never fewer together than asked for."""
    whole = sum(target.share for target in TARGETS.values())
    return {name: -(-cases * target.share // whole) for name, target in TARGETS.items()}


class Journal:
    """What is done, a line a chunk, so that a killed campaign loses no more than two chunks.

    Args:
        path: the file; None for none.
        code: digest of what is tried; entries of other code are left out.
    """

    def __init__(self, path: Path | None, code: str) -> None:
        self.path, self.code = path, code
        self.entries: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        if path is not None and path.exists():
            self.entries = [entry for entry in _lines(path) if entry["code_sha256"] == code]

    def of(self, chunks: Iterable[Chunk]) -> dict[Chunk, dict[str, Any]]:
        """The entries of those of the chunks that are done."""
        done = {(entry["target"], entry["first"], entry["end"]): entry for entry in self.entries}
        return {chunk: done[chunk] for chunk in chunks if chunk in done}

    def add(self, chunk: Chunk, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Puts down a chunk's outcomes; returns its faults."""
        target, first, end = chunk
        entry: dict[str, Any] = {
            "code_sha256": self.code,
            "target": target,
            "first": first,
            "end": end,
            "outcomes": Counter(answer["outcome"] for answer in answers),
            "cpu_seconds": max(answer["cpu_seconds"] for answer in answers),
            "faults": [
                {"target": target, "case": first + index, **answer}
                for index, answer in enumerate(answers)
                if answer["outcome"] in FAULTS
            ],
        }
        with self._lock:
            self.entries.append(entry)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
        faults: list[dict[str, Any]] = entry["faults"]
        return faults


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut short by the kill
            continue


def run(chunks: list[Chunk], journal: Journal, processes: int, total: int) -> None:
    """Runs the chunks in so many processes."""
    waiting = iter(chunks)
    lock = threading.Lock()
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(bar: ProgressBar) -> None:
        worker = Worker()
        try:
            while not stop.is_set():
                with lock:
                    chunk = next(waiting, None)
                if chunk is None:
                    return
                target, first, end = chunk
                answers = []
                for number in range(first, end):
                    if stop.is_set():
                        return
                    answers.append(worker.run(target, number))
                    with lock:
                        bar.advance()
                for fault in journal.add(chunk, answers):
                    bar.print_line(f"{fault['outcome']}: {target}, case {fault['case']}")
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            worker.close()

    with ProgressBar(total) as bar:
        bar.advance_to(total - sum(end - first for _, first, end in chunks))
        threads = [threading.Thread(target=work, args=(bar,)) for _ in range(processes)]
        for thread in threads:
            thread.start()
        said = time.monotonic()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.2)
                if not bar.visible and time.monotonic() - said > SECONDS_A_LINE:
                    said = time.monotonic()
                    bar.print_line(f"{int(bar.done):,} of {total:,} cases")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    if errors:
        raise errors[0]


def summed(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A target's row of the record."""
    entries = list(entries)
    outcomes: Counter[str] = Counter()
    for entry in entries:
        outcomes.update(entry["outcomes"])
    return {
        "cases": outcomes.total(),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "slowest_cpu_seconds": max(entry["cpu_seconds"] for entry in entries),
        "code_sha256": entries[0]["code_sha256"],
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    heads = ("refused", "the same", "another", "tracebacks", "hangs", "wrong outputs")
    keys = ("cases", *OUTCOMES)
    rows = [
        (name, *(f"{row[key]:,}" for key in keys), f"{row['slowest_cpu_seconds']:.1f} s")
        for name, row in record["targets"].items()
    ]
    whole = {key: sum(row[key] for row in record["targets"].values()) for key in keys}
    slowest = max(row["slowest_cpu_seconds"] for row in record["targets"].values())
    total = ("all", *(f"{whole[key]:,}" for key in keys), f"{slowest:.1f} s")
    return (
        f"{commands_of(record['targets'])}; {describe(record['environment'])}\n\n"
        + markdown_table(("what is read", "cases", *heads, "slowest"), [*rows, total])
    )


def run_here(name: str, number: int) -> int:
    """Runs one case in this process and prints what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name]
        outcome, detail = run_case(target, target.open(Path(folder)), number)
    print(f"{outcome}\n{detail}", flush=True)
    return int(outcome in FAULTS)


def main() -> int:
    arguments = parse_arguments()
    if arguments.report is not None:
        record = json.loads(arguments.report.read_text("utf-8"))
        write_table(DOCUMENT, "fuzzing", table(record))
        return 0
    torch.set_num_threads(1)
    if arguments.case is not None:
        os._exit(run_here(arguments.only[0], arguments.case))  # servers keep threads
    if arguments.cases < 1:
        raise InputError(f"--cases is {arguments.cases}; expected 1 or more")
    output: Path | None = arguments.output
    code = source_sha256(names=CODE)
    journal = Journal(output and output.with_suffix(".journal"), code)
    chosen = {n: c for n, c in plan(arguments.cases).items() if n in (arguments.only or TARGETS)}
    chunks = [
        (name, first, min(first + CHUNK, cases))
        for name, cases in chosen.items()
        for first in range(0, cases, CHUNK)
    ]
    started = time.monotonic()
    done = journal.of(chunks)
    missing = [chunk for chunk in chunks if chunk not in done]
    run(missing, journal, arguments.processes, sum(chosen.values()))

    done = journal.of(chunks)
    rows = {
        name: summed(entry for entry in done.values() if entry["target"] == name) for name in chosen
    }
    command = f"python tests/fuzz/campaign.py --cases {arguments.cases}"
    rows = {name: {**row, "command": command} for name, row in rows.items()}
    faults = [fault for entry in done.values() for fault in entry["faults"]]
    if output is not None:
        earlier = json.loads(output.read_text("utf-8")) if output.exists() else {"targets": {}}
        rows = {**earlier["targets"], **rows}
        record = {
            "environment": environment(),
            "seconds": round(time.monotonic() - started),
            "targets": {name: rows[name] for name in TARGETS if name in rows},
            "faults": faults[:MOST_DETAILS],
        }
        write_json(output, record)
        if journal.path is not None:
            journal.path.unlink()
    for name in chosen:
        print(f"{name:<40}", *(f"{rows[name][what]:>8,} {what}" for what in OUTCOMES), sep="  ")
    for fault in faults:
        print(f"\n{fault['outcome']}: {fault['target']}, case {fault['case']}\n{fault['detail']}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(run_script(main))

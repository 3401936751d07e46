"""Calls kernels, encoders and programs again and again; every output must be the first correct one.

    python benchmarks/stress.py --output benchmarks/results/h200_stress.json

An asynchronous kernel can be right a million times and wrong once, when a warp, a copy or another
process comes at an unlucky moment. So: random sizes, tiles and orders; kernels as they are and with
random waits before every operation on a barrier (samtrt/kernels/hopper/device, ``JITTER``); alone
on the GPU and beside seven other processes; whole encoders at batches of 1 to 8; SamPredictor and
SamAutomaticMaskGenerator; and all of it, in short, under compute-sanitizer. First outputs are
compared with float64 (but those of the last two programs), all others with the first, bit by bit.

    python benchmarks/stress.py --sections kernels --variants "racing, jittered" --until-found

puts an old fault of the residual layers back, and must find it.
"""

import argparse
import json
import multiprocessing
import os
import queue
import random
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.record import source_sha256
from benchmarks.stressing import kernels
from benchmarks.stressing.variants import VARIANTS, programs_changed
from benchmarks.stressing.watch import NO_CACHING, NoCorrectOutputError, Watched
from samtrt.files import write_json
from samtrt.reports.benchmarking import environment

SECTIONS = ("kernels", "triton", "encoders", "programs")
# Each process has one model; ViT-B, whose calls are short, makes most of them.
MODELS = ("vit_b", "vit_l", "vit_b", "vit_h", "vit_b", "vit_l", "vit_b", "vit_b")
TOOLS = ("memcheck", "synccheck", "initcheck", "racecheck")
SHARE_OF_JITTERED = 0.25  # calls, for each one of ordinary kernels: they take longer
TELL = 5.0  # seconds between two lines
WAIT_CALLS = 32  # calls queued before a process waits for the GPU
PAUSES = 0.05  # of them, so many are followed by a pause of up to 5 ms
# Ours, among what a sanitizer names.
OUR_KERNELS = (
    "linear", "window_attention", "global_attention", "_linear_gelu", "_relative_positions",
    "_window_attention", "_global_attention", "_layer_norm", "_patchify", "_gelu", "_mask",
)  # fmt: skip


@dataclass
class Work:
    """What one process does.

    Attributes:
        calls: of all cases together, after which it ends, if not after ``seconds``.
        until_found: it ends at the first fault.
    """

    section: str
    variants: tuple[str, ...]
    seconds: float
    seed: int
    rank: int = 0
    cases: int = 32
    calls: int | None = None
    until_found: bool = False


@dataclass
class Count:
    """Of one variant.

    Attributes:
        differing: calls whose output was not the first correct one.
        failures: cases without a correct output, and processes that ended with an error.
        found_after: seconds from a process's start, compilation included, after which one of
            these was noticed first.
    """

    cases: int = 0
    calls: int = 0
    differing: int = 0
    failures: list[str] = field(default_factory=list)
    found_after: float | None = None

    def add(self, other: "Count") -> None:
        self.cases += other.cases
        self.calls += other.calls
        self.differing += other.differing
        self.failures += other.failures
        found = [each.found_after for each in (self, other) if each.found_after is not None]
        self.found_after = min(found, default=None)


Counts = dict[str, Count]


# ---- one process ---------------------------------------------------------------------------------


def cases_of(work: Work) -> Iterator[tuple[str, Any]]:
    """(variant, something to be called)."""
    seed = 1000 * work.seed + work.rank
    for variant in work.variants:
        # The first calls record graphs, so these are of the variant's programs, too.
        with programs_changed(VARIANTS[variant]):
            if work.section == "kernels":
                kinds = [kernels.residual_linear] if "racing" in variant else None
                for case in kernels.Maker(seed).cases(work.cases, kinds):
                    yield variant, partial(Watched, case)
            elif work.section == "triton":
                from benchmarks.stressing import triton_kernels

                for kind in triton_kernels.kinds():
                    yield variant, partial(Watched, kind(kernels.Maker(seed)))
            else:
                from benchmarks.stressing import encoders

                model = MODELS[work.rank % len(MODELS)]
                make = encoders.encoders if work.section == "encoders" else encoders.programs
                name = model if work.section == "encoders" else "vit_b"
                for repeated in make(name, work.seed):
                    yield variant, lambda repeated=repeated: repeated


def run(work: Work, tell: Any = None) -> Counts:
    """Makes the cases, then calls them in random order.

    A kernel that fails leaves a process that can do nothing more: its failure is counted and the
    process ends.
    """
    choice = random.Random(work.seed * 7919 + work.rank)
    counts: Counts = {variant: Count() for variant in work.variants}
    made: list[tuple[str, Any]] = []

    def state() -> Counts:
        for variant, count in counts.items():
            own = [case for name, case in made if name == variant]
            count.cases = len(own)
            count.calls = sum(case.calls for case in own)
            count.differing = sum(case.differing for case in own)
            note(count)
        return counts

    variant = work.variants[0]
    told = start = time.perf_counter()

    def note(count: Count) -> None:
        if count.found_after is None and (count.differing or count.failures):
            count.found_after = round(time.perf_counter() - start, 2)

    try:
        for variant, make in cases_of(work):
            try:
                made.append((variant, make()))
            except NoCorrectOutputError as error:
                counts[variant].failures.append(str(error))
                note(counts[variant])
                if work.until_found:
                    return counts
        weights = [
            case.weight * (SHARE_OF_JITTERED if name == "jittered" else 1.0) for name, case in made
        ]
        begin = time.perf_counter()
        number = 0
        while made and time.perf_counter() - begin < work.seconds:
            if work.calls is not None and sum(case.calls for _, case in made) >= work.calls:
                break
            variant, case = choice.choices(made, weights)[0]
            case.call()
            number += 1
            if number % WAIT_CALLS == 0:
                torch.cuda.synchronize()
                if work.until_found and any(each.differing for each in state().values()):
                    return counts
            if choice.random() < PAUSES:
                torch.cuda.synchronize()
                time.sleep(choice.random() * 0.005)
            if tell is not None and time.perf_counter() - told > TELL:
                told = time.perf_counter()
                tell(state())
        torch.cuda.synchronize()
        state()
    except Exception as error:
        traceback.print_exc()
        counts[variant].failures.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        note(counts[variant])
    return counts


def process(work: Work, messages: Any) -> None:
    """The main function of a process: counts, now and then and at the end."""
    counts = run(work, lambda counts: messages.put((work.rank, False, counts)))
    messages.put((work.rank, True, counts))


# ---- all processes -------------------------------------------------------------------------------


def total(parts: Sequence[Counts]) -> Counts:
    sums: Counts = {}
    for counts in parts:
        for variant, count in counts.items():
            sums.setdefault(variant, Count()).add(count)
    return sums


def line(section: str, processes: int, counts: Counts) -> str:
    texts = [
        f"{variant}: {count.calls:,} calls of {count.cases} cases, {count.differing} differ"
        + (f", {len(count.failures)} failures ({count.failures[0]})" if count.failures else "")
        + (f", found after {count.found_after} s" if count.found_after is not None else "")
        for variant, count in counts.items()
    ]
    return f"{section}, {processes} process{'es' * (processes > 1)}: {'; '.join(texts)}"


def run_together(work: Work, processes: int) -> Counts:
    """The same section in several processes at once."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    started = {}
    for rank in range(processes):
        own = Work(**{**asdict(work), "rank": rank})
        started[rank] = context.Process(target=process, args=(own, messages))
        started[rank].start()
    last: dict[int, Counts] = {}
    running = set(started)
    told = time.perf_counter()
    while running:
        try:
            rank, is_end, counts = messages.get(timeout=1.0)
            last[rank] = counts
            if is_end:
                running.discard(rank)
        except queue.Empty:
            for rank in [rank for rank in running if started[rank].exitcode is not None]:
                running.discard(rank)  # it died without a word
                counts = last.setdefault(rank, {name: Count() for name in work.variants})
                code = started[rank].exitcode
                counts[work.variants[-1]].failures.append(f"process ended with {code}")
        if time.perf_counter() - told > TELL:
            told = time.perf_counter()
            print(line(work.section, processes, total(list(last.values()))), flush=True)
    for each in started.values():
        each.join()
    return total(list(last.values()))


# ---- compute-sanitizer ---------------------------------------------------------------------------


def sanitize(tool: str, section: str, seconds: float, seed: int) -> dict[str, Any]:
    """A few calls of a section under one tool of compute-sanitizer.

    Returns:
        tool, section, calls, differing, errors (of our kernels), others (of libraries' kernels), or
        failure.
    """
    command = [
        "compute-sanitizer", "--tool", tool, "--print-limit", "200", "--target-processes", "all",
        sys.executable, str(Path(__file__).resolve()), "--sections", section, "--processes", "1",
        "--calls", "150" if section == "kernels" else "6", "--cases", "12", "--seed", str(seed),
        "--seconds", str(seconds), "--variants", "ordinary", "--in-process",
    ]  # fmt: skip
    row: dict[str, Any] = {"tool": tool, "section": section}
    variables = dict(os.environ)
    if section == "kernels":  # (the others record graphs, which needs memory that torch keeps)
        variables[NO_CACHING] = "1"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=variables
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return row | {"failure": f"{type(error).__name__}: {error}"[:200]}
    return row | read_sanitizer(done.stdout + done.stderr)


def read_sanitizer(text: str) -> dict[str, Any]:
    """Errors by the kernel that they name, and what the program under the sanitizer counted."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", text)
    counted = re.findall(r"^COUNTS (\{.*\})$", text, re.MULTILINE)
    if not summary or not counted:
        last = [each for each in text.splitlines() if each.strip()][-1:]
        return {"failure": f"the program did not end: {' '.join(last)[:200]}"}
    where = Counter(
        re.findall(r"^=========.*?\bat (?:void )?([A-Za-z_][\w:]*).*\+0x", text, re.MULTILINE)
    )
    ours = {name: count for name, count in where.items() if name.startswith(OUR_KERNELS)}
    entry = json.loads(counted[-1])
    return {
        "calls": sum(count["calls"] for count in entry.values()),
        "differing": sum(count["differing"] for count in entry.values()),
        "failures": [text for count in entry.values() for text in count["failures"]],
        "errors": sum(ours.values()),
        "others": int(summary[-1]) - sum(ours.values()),
        "kernels": dict(where),
    }


# ---- the record ----------------------------------------------------------------------------------


def parse_arguments(options: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ordinary", "jittered"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each section with each number of processes"
    )
    parser.add_argument("--encoder-seconds", type=float, help="instead, of whole encoders")
    parser.add_argument("--cases", type=int, default=32, help="a process, of the kernels")
    parser.add_argument("--calls", type=int, help="a process, at most")
    parser.add_argument(
        "--until-found", action="store_true", help="end at the first fault; say after how long"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=[], help="compute-sanitizer's")
    parser.add_argument("--tool-seconds", type=float, default=120.0, help="a tool and section")
    parser.add_argument("--in-process", action="store_true", help="one process, this one")
    parser.add_argument("--output", type=Path, help="JSON record to write")
    return parser.parse_args(options)


def table(record: dict[str, Any]) -> str:
    rows = [("section", "kernels", "processes", "cases", "calls", "differ", "failures")]
    for row in record["rows"]:
        numbers = [f"{row[name]:,}" for name in ("processes", "cases", "calls", "differing")]
        rows.append((row["section"], row["variant"], *numbers, str(len(row["failures"]))))
    for row in record["sanitizer"]:
        text = f"{row['errors']} errors of ours" if "errors" in row else row["failure"]
        rows.append((row["section"], row["tool"], "1", "", str(row.get("calls", "")), text, ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def is_clean(record: dict[str, Any]) -> bool:
    """Whether nothing differed, failed, or was told by a sanitizer of our kernels."""
    runs = [*record["rows"], *(row for row in record["sanitizer"] if "failure" not in row)]
    return not any(row["differing"] or row["failures"] or row.get("errors") for row in runs)


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        sys.exit("error: the kernels that are stressed need a Hopper GPU, and there is none")
    record: dict[str, Any] = {
        "environment": environment(),
        "source_sha256": source_sha256(),
        "seed": arguments.seed,
        "rows": [],
        "sanitizer": [],
    }
    for section in arguments.sections:
        is_long = section == "encoders" and arguments.encoder_seconds is not None
        work = Work(
            section,
            ("ordinary",) if section == "triton" else tuple(arguments.variants),
            arguments.encoder_seconds if is_long else arguments.seconds,
            arguments.seed,
            cases=arguments.cases,
            calls=arguments.calls,
            until_found=arguments.until_found,
        )
        # Kernels alone and beside others; the rest beside others, where more goes wrong.
        together = arguments.processes if section == "kernels" else [max(arguments.processes)]
        for processes in together:
            start = time.perf_counter()
            counts = run(work) if arguments.in_process else run_together(work, processes)
            seconds = round(time.perf_counter() - start, 1)
            print(line(section, processes, counts), flush=True)
            if arguments.in_process:
                print("COUNTS", json.dumps({k: asdict(count) for k, count in counts.items()}))
            for variant, count in counts.items():
                row = {"section": section, "variant": variant, "processes": processes}
                record["rows"].append(row | {"seconds": seconds} | asdict(count))
    for tool in arguments.tools:
        for section in arguments.sections:
            row = sanitize(tool, section, arguments.tool_seconds, arguments.seed)
            record["sanitizer"].append(row)
            print(row, flush=True)
    print(table(record))
    if arguments.output:
        write_json(arguments.output, record)
    if not is_clean(record):
        sys.exit("error: outputs differ or kernels fail")


if __name__ == "__main__":
    main()

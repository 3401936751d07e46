"""Calls kernels, encoders and programs again and again; every output must be the first correct one.

    python benchmarks/stress.py --output benchmarks/results/h200_stress.json

An asynchronous kernel can be right a million times and wrong once, when a warp, a copy or another
process comes at an unlucky moment. So: random sizes, tiles and orders; kernels as they are and with
random waits before every operation on a barrier (samtrt/kernels/hopper/device, ``JITTER``); alone
on the GPU, and beside eighteen other processes that run whole encoders at batches of 1 to 8,
SamPredictor and SamAutomaticMaskGenerator; and, in short, under compute-sanitizer. First outputs
are compared with float64 (but those of the last two), all others with the first, bit by bit.

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
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
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
from samtrt.kernels.hopper import compiler as hopper_compiler
from samtrt.reports.benchmarking import environment

SECTIONS = ("kernels", "triton", "encoders", "programs")
# Each process has one model; ViT-B, whose calls are short, makes most of them.
MODELS = ("vit_b", "vit_l", "vit_b", "vit_h", "vit_b", "vit_l", "vit_b", "vit_b")
TOOLS = ("memcheck", "synccheck", "initcheck", "racecheck")
PROCESSES = {"kernels": 8, "triton": 1, "encoders": 8, "programs": 2}  # at the same time
SHARE_OF_JITTERED = {"kernels": 0.25, "encoders": 0.1}  # calls: they take longer than ordinary ones
TELL = 5.0  # seconds between two lines
BLOCKS = 3  # of the programs' encoder under a sanitizer: two of windows, one of the whole grid
PAUSES = 0.02  # of the calls, so many are followed by a pause of up to 5 ms
MOST_DIFFERENCES = 5  # told of a process
# Our kernels' sources, which a sanitizer names.
OUR_FILES = {
    path.name
    for folder in (hopper_compiler.FOLDER, hopper_compiler.FOLDER.parents[1] / "triton")
    for path in folder.iterdir()
}
# What racecheck takes for hazards, since it does not know what orders them.
BLIND = {
    ("global_attention.cu", "store", "consume"): "a warp's own lanes, around a __syncwarp of which "
    "ptxas leaves nothing where the warp is converged",
    ("window_attention.cu", "load_matrix_x4", "gather"): "table rows beyond the last are read "
    "where the scratch lies, and not used",
    ("window_attention.cu", "write_padding", "load_matrix_x4_transposed"): "the padding of one "
    "unit and the values of the one before in its stage, which mbarriers and a copy order",
}


@dataclass
class Work:
    """What one process does.

    Attributes:
        calls: of all cases together, after which it ends, if not after ``seconds``.
        until_found: it ends at the first fault.
        blocks: of the programs' encoder, in place of ViT-B's.
    """

    section: str
    variants: tuple[str, ...]
    seconds: float
    seed: int
    rank: int = 0
    cases: int = 32
    calls: int | None = None
    until_found: bool = False
    blocks: int | None = None


@dataclass
class Count:
    """Of one variant.

    Attributes:
        differing: calls whose output was not the first correct one.
        differences: where the first of these were.
        failures: cases without a correct output, and processes that ended with an error.
        found_after: seconds from a process's start, compilation included, after which one of
            these was noticed first.
    """

    cases: int = 0
    calls: int = 0
    differing: int = 0
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    found_after: float | None = None

    def add(self, other: "Count") -> None:
        self.cases += other.cases
        self.calls += other.calls
        self.differing += other.differing
        self.differences += other.differences
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

                if work.section == "encoders":
                    made = encoders.encoders(MODELS[work.rank % len(MODELS)], work.seed)
                else:
                    made = encoders.programs("vit_b", work.seed, blocks=work.blocks)
                for repeated in made:
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
        share = SHARE_OF_JITTERED.get(work.section, 1.0)
        weights = [case.weight * (share if name == "jittered" else 1.0) for name, case in made]
        begin = time.perf_counter()
        while made and time.perf_counter() - begin < work.seconds:
            if work.calls is not None and sum(case.calls for _, case in made) >= work.calls:
                break
            variant, case = choice.choices(made, weights)[0]
            before = case.differing
            case.call()
            if case.differing > before:
                if len(counts[variant].differences) < MOST_DIFFERENCES:
                    counts[variant].differences.append(case.what_differs())
                note(state()[variant])
                if work.until_found:
                    return counts
            if choice.random() < PAUSES:
                time.sleep(choice.random() * 0.005)
            if tell is not None and time.perf_counter() - told > TELL:
                told = time.perf_counter()
                tell(state())
        state()
    except Exception as error:
        traceback.print_exc()
        counts[variant].failures.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        note(counts[variant])
    return counts


def process(work: Work, messages: Any, turn: Any, folder: Path) -> None:
    """The main function of a process: counts, now and then and at the end."""
    if work.section in ("encoders", "programs"):
        from benchmarks.stressing.encoders import share

        share(turn, folder)
    name = work.section, work.rank
    counts = run(work, lambda counts: messages.put((name, False, counts)))
    messages.put((name, True, counts))


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
        + (f" ({count.differences[0]})" if count.differences else "")
        + (f", {len(count.failures)} failures ({count.failures[0]})" if count.failures else "")
        + (f", found after {count.found_after} s" if count.found_after is not None else "")
        for variant, count in counts.items()
    ]
    return f"{section}, {processes} process{'es' * (processes > 1)}: {'; '.join(texts)}"


def run_together(works: dict[str, Work], processes: dict[str, int]) -> dict[str, Counts]:
    """Sections at the same time, each in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        return _run_together(works, processes, Path(folder))


def _run_together(
    works: dict[str, Work], processes: dict[str, int], folder: Path
) -> dict[str, Counts]:
    context = multiprocessing.get_context("spawn")
    messages, turn = context.Queue(), context.Lock()
    started = {}
    for section, work in works.items():
        for rank in range(processes[section]):
            own = replace(work, rank=rank)
            arguments = (own, messages, turn, folder)
            started[section, rank] = context.Process(target=process, args=arguments)
            started[section, rank].start()
    last: dict[tuple[str, int], Counts] = {}

    def so_far() -> dict[str, Counts]:
        return {
            section: total([counts for (name, _), counts in last.items() if name == section])
            for section in works
        }

    running = set(started)
    told = time.perf_counter()
    while running:
        try:
            name, is_end, counts = messages.get(timeout=1.0)
            last[name] = counts
            if is_end:
                running.discard(name)
        except queue.Empty:
            for name in [name for name in running if started[name].exitcode is not None]:
                running.discard(name)  # it died without a word
                variants = works[name[0]].variants
                counts = last.setdefault(name, {variant: Count() for variant in variants})
                text = f"process ended with {started[name].exitcode}"
                counts[variants[-1]].failures.append(text)
        if time.perf_counter() - told > TELL:
            told = time.perf_counter()
            for section, counts in so_far().items():
                print(line(section, processes[section], counts), flush=True)
    for each in started.values():
        each.join()
    return so_far()


# ---- compute-sanitizer ---------------------------------------------------------------------------


def sanitize(tool: str, section: str, seconds: float, seed: int) -> dict[str, Any]:
    """A few calls of a section under one tool of compute-sanitizer.

    Returns:
        tool, section, calls, differing, failures, and of ``read_sanitizer``; or failure.
    """
    command = [
        "compute-sanitizer", "--tool", tool, "--print-limit", "500", "--target-processes", "all",
        *(("--report-api-errors", "no") if tool == "memcheck" else ()),
        sys.executable, str(Path(__file__).resolve()), "--sections", section, "--in-process",
        "--calls", "80" if section == "kernels" else "12", "--cases", "8", "--seed", str(seed),
        "--seconds", str(seconds), "--variants", "ordinary", "--blocks", str(BLOCKS),
    ]  # fmt: skip
    row: dict[str, Any] = {"tool": tool, "section": section}
    variables = dict(os.environ)
    if section == "kernels":  # (the others record graphs, which needs memory that torch keeps)
        variables[NO_CACHING] = "1"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=variables
        )
    except subprocess.TimeoutExpired as error:
        so_far = ((error.stdout or b"") + (error.stderr or b"")).decode(errors="replace")
        return row | read_sanitizer(so_far) | {"failure": f"not ended after {seconds:.0f} s"}
    except OSError as error:
        return row | {"failure": f"{type(error).__name__}: {error}"[-200:]}
    return row | read_sanitizer(done.stdout + done.stderr)


def read_sanitizer(text: str) -> dict[str, Any]:
    """What a sanitizer says, by the source file that it names first in each report.

    Returns:
        errors: reports of our kernels; explained: of those in ``BLIND``, by their reason; others:
        of libraries' kernels; places: reports by file and function; and what the program itself
        counted, or its failure.
    """
    counted = re.findall(r"^COUNTS (\{.*\})$", text, re.MULTILINE)
    places: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    errors = others = 0
    # A report begins with a line that names what it is about, and goes on to an empty one.
    for report in re.split(r"^=========\s*$", text, flags=re.MULTILINE):
        found = re.findall(
            r"\bat (?:void )?([A-Za-z_][\w:]*).*?\+0x[0-9a-f]+ in (\S+?):\d+", report
        )
        unknown = re.search(r"\bat (?:void )?([A-Za-z_][\w:]*).*?\+0x", report)
        if not found and not unknown:
            continue
        functions = [function for function, _ in found] or [unknown[1] if unknown else ""]
        file = Path(found[0][1]).name if found else ""
        is_ours = file in OUR_FILES
        reasons = [why for key, why in BLIND.items() if {*key} <= {file, *functions}]
        places[f"{file} {functions[0]}".strip()] += 1
        if reasons and "Race reported" in report:
            explained[f"{file}: {reasons[0]}"] += 1
        elif is_ours:
            errors += 1
        else:
            others += 1
    row: dict[str, Any] = {
        "errors": errors,
        "explained": dict(explained),
        "others": others,
        "places": dict(places.most_common(20)),
    }
    if "SUMMARY" not in text or not counted:
        own = [each for each in text.splitlines() if each.strip() and each[0] != "="]
        last = " ".join((own or text.splitlines())[-1:])
        return row | {"failure": f"the program did not end: {last[:200]}"}
    entry = json.loads(counted[-1])
    return row | {
        "calls": sum(count["calls"] for count in entry.values()),
        "differing": sum(count["differing"] for count in entry.values()),
        "failures": [text for count in entry.values() for text in count["failures"]],
    }


# ---- the record ----------------------------------------------------------------------------------


def parse_arguments(options: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ordinary", "jittered"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of calls of a section")
    parser.add_argument("--alone-seconds", type=float, help="instead, where it is alone")
    parser.add_argument("--encoder-seconds", type=float, help="instead, of whole encoders")
    parser.add_argument("--alone", action="store_true", help="each section in one process, alone")
    parser.add_argument("--cases", type=int, default=32, help="a process, of the kernels")
    parser.add_argument("--calls", type=int, help="a process, at most")
    parser.add_argument(
        "--until-found", action="store_true", help="end at the first fault; say after how long"
    )
    parser.add_argument("--blocks", type=int, help="of the programs' encoder, in place of ViT-B's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tools",
        nargs="*",
        choices=TOOLS,
        default=[],
        help="compute-sanitizer's, over kernels and programs",
    )
    parser.add_argument("--tool-seconds", type=float, default=120.0, help="a tool and section")
    parser.add_argument("--in-process", action="store_true", help="one process, this one")
    parser.add_argument("--output", type=Path, help="JSON record to write")
    return parser.parse_args(options)


def work_of(section: str, arguments: argparse.Namespace) -> Work:
    is_long = section == "encoders" and arguments.encoder_seconds is not None
    return Work(
        section,
        ("ordinary",) if section == "triton" else tuple(arguments.variants),
        arguments.encoder_seconds if is_long else arguments.seconds,
        arguments.seed,
        cases=arguments.cases,
        calls=arguments.calls,
        until_found=arguments.until_found,
        blocks=arguments.blocks,
    )


def table(record: dict[str, Any]) -> str:
    rows = [("section", "kernels", "processes", "cases", "calls", "differ", "failures")]
    for row in record["rows"]:
        numbers = [f"{row[name]:,}" for name in ("processes", "cases", "calls", "differing")]
        rows.append((row["section"], row["variant"], *numbers, str(len(row["failures"]))))
    for row in record["sanitizer"]:
        text = row.get("failure") or (
            f"{row['errors']} errors of ours, {sum(row['explained'].values())} explained, "
            f"{row['others']} of libraries"
        )
        rows.append((row["section"], row["tool"], "1", "", str(row.get("calls", "")), text, ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def is_clean(record: dict[str, Any]) -> bool:
    """Whether nothing differed, failed, or was told by a sanitizer of our kernels."""
    kinds = ("differing", "failures", "errors")
    return not any(row.get(kind) for row in record["rows"] + record["sanitizer"] for kind in kinds)


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
    works = {section: work_of(section, arguments) for section in arguments.sections}

    def note(counts: dict[str, Counts], processes: dict[str, int], start: float) -> None:
        seconds = round(time.perf_counter() - start, 1)
        for section, variants in counts.items():
            print(line(section, processes[section], variants), flush=True)
            for variant, count in variants.items():
                row = {"section": section, "variant": variant, "processes": processes[section]}
                record["rows"].append(row | {"seconds": seconds} | asdict(count))
        if arguments.output:
            write_json(arguments.output, record)

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        for section, work in works.items():  # alone
            if section == "kernels" or arguments.alone or arguments.in_process:
                start = time.perf_counter()
                one = {section: 1}
                work = replace(work, seconds=arguments.alone_seconds or work.seconds)
                counts = {section: run(work)} if arguments.in_process else {}
                note(counts or run_together({section: work}, one), one, start)
        tools: list[Future[dict[str, Any]]] = [
            pool.submit(sanitize, tool, section, arguments.tool_seconds, arguments.seed)
            for section in ("kernels", "programs")
            if section in arguments.sections
            for tool in arguments.tools
        ]
        for tool in tools:
            tool.add_done_callback(lambda tool: print(tool.result(), flush=True))
        if not (arguments.alone or arguments.in_process):
            start = time.perf_counter()
            note(run_together(works, PROCESSES), PROCESSES, start)
        for tool in tools:
            record["sanitizer"].append(tool.result())
    if arguments.in_process:
        counts = {row["variant"]: row for row in record["rows"]}
        print("COUNTS", json.dumps(counts), flush=True)
    print(table(record))
    if arguments.output:
        write_json(arguments.output, record)
    if not is_clean(record):
        sys.exit("error: outputs differ or kernels fail")


if __name__ == "__main__":
    main()

"""Kills every command that writes, some hundred times, and counts what is lost.

    python tests/kills/kill_campaign.py --kills 500 --output benchmarks/results/kills.json
    python tests/kills/kill_campaign.py --report benchmarks/results/kills.json

The second command writes the record's table into docs/reliability.md.

Kills come at seeded random times while a command works, most of them once it has begun to write.
After each the earlier output or the new one has to be there, whole, and the next run has to write
as if nothing had been. Commands run two at once and out of room as well. The exit status is 1
where anything was lost; each loss is printed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from kill_harness import Outcome, Trial, small_disk, warm_up
from writing_commands import COMMANDS, Inputs

from benchmarks.record import ROOT, commands_of, source_sha256, write_table
from samtrt.console import ProgressBar, run_script
from samtrt.errors import InputError
from samtrt.files import write_json
from samtrt.reports.benchmarking import describe, environment, markdown_table

DOCUMENT = ROOT / "docs" / "reliability.md"
RECORD = ROOT / "benchmarks" / "results" / "kills.json"  # what the document shows
CODE = ("samtrt", "tests/kills/kill_harness.py", "tests/kills/writing_commands.py")
SECONDS_A_LINE = 20.0
ROOM = (0, 1 << 13)  # bytes left of a full disk
SHARES = (0.0, 0.9)  # of the largest file, where files are bounded


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of all commands (default: 100)")
    parser.add_argument("--only", nargs="+", metavar="COMMAND", choices=COMMANDS, default=[])
    parser.add_argument("--seed", type=int, default=0, help="of the kills' times (default: 0)")
    parser.add_argument("--output", type=Path, help="JSON record; only the chosen commands' change")
    parser.add_argument("--report", type=Path, metavar="RECORD", help="writes its table, runs none")
    return parser.parse_args()


def try_command(trial: Trial, kills: int, has_disk: bool, bar: ProgressBar) -> Outcome:
    """All rounds of one command."""
    outcome = trial.outcome
    said = time.monotonic()
    rounds = 0
    while outcome.kills < kills and rounds < 10 * kills:
        rounds += 1
        before = outcome.kills
        trial.kill()
        if outcome.kills > before:
            bar.advance()
        if not bar.visible and time.monotonic() - said > SECONDS_A_LINE:
            said = time.monotonic()
            bar.print_line(f"{int(bar.done)} kills")
    for _ in range(max(1, kills // 5)):
        trial.run_two()
    for share in SHARES:
        trial.run_out_of_room(share)
    for room in ROOM * has_disk:
        trial.run_on_full_disk(room)
    return outcome


def run(only: list[str], kills: int, seed: int) -> tuple[dict[str, Outcome], bool]:
    """Each command's outcome, and whether there was a disk to fill."""
    chosen = {name: COMMANDS[name] for name in only or COMMANDS}
    whole = sum(command.share for command in chosen.values())
    shares = {name: -(-kills * command.share // whole) for name, command in chosen.items()}
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="samtrt-kills-") as name:
        folder = Path(name)
        inputs = Inputs(folder / "inputs")
        warm_up(chosen.values(), inputs, folder / "first")
        with small_disk(folder / "disk") as has_disk, ProgressBar(sum(shares.values())) as bar:
            for name, command in chosen.items():
                bar.describe(name)
                trial = Trial(command, inputs, folder / "disk", seed)
                outcomes[name] = try_command(trial, shares[name], has_disk, bar)
                for fault in outcomes[name].faults:
                    bar.print_line(fault)
    return outcomes, has_disk


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    heads = {
        "kills": "kills", "while_writing": "while writing", "earlier": "earlier whole",
        "new": "new whole", "nothing": "nothing before or after", "two_at_once": "two at once",
        "told": "second told", "out_of_room": "out of room",
    }  # fmt: skip
    rows = [
        (f"`{name}`", *(f"{row[key]:,}" for key in heads), f"{len(row['faults']):,}")
        for name, row in record["commands"].items()
    ]
    sums = [sum(row[key] for row in record["commands"].values()) for key in heads]
    lost = sum(len(row["faults"]) for row in record["commands"].values())
    total = ("all", *(f"{number:,}" for number in (*sums, lost)))
    return (
        f"{commands_of(record['commands'])}; {describe(record['environment'])}\n\n"
        + markdown_table(("command", *heads.values(), "lost"), [*rows, total])
    )


def main() -> int:
    arguments = parse_arguments()
    if arguments.report is not None:
        record = json.loads(arguments.report.read_text("utf-8"))
        write_table(DOCUMENT, "kills", table(record))
        return 0
    if arguments.kills < 1:
        raise InputError(f"--kills is {arguments.kills}; expected 1 or more")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.monotonic()
    outcomes, has_disk = run(arguments.only, arguments.kills, arguments.seed)
    origin = {
        "command": f"python tests/kills/kill_campaign.py --kills {arguments.kills}"
        f" --seed {arguments.seed}" + " --only " * bool(arguments.only) + " ".join(arguments.only),
        "code_sha256": source_sha256(names=CODE),
    }
    rows: dict[str, Any] = {
        name: {**outcome.to_json(), **origin} for name, outcome in outcomes.items()
    }
    output: Path | None = arguments.output
    if output is not None:
        earlier = json.loads(output.read_text("utf-8"))["commands"] if output.exists() else {}
        known = {**earlier, **rows}
        record = {
            "environment": environment(),
            "seconds": round(time.monotonic() - started),
            "full_disk": has_disk,
            "commands": {name: known[name] for name in COMMANDS if name in known},
        }
        write_json(output, record)
    for name, outcome in outcomes.items():
        counts = (f"{value} {key}" for key, value in outcome.to_json().items() if key != "faults")
        print(f"{name:<16}", *counts)
    faults = [fault for outcome in outcomes.values() for fault in outcome.faults]
    for fault in faults:
        print(fault)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""What counts as a hop, by hand; and the counts of docs/architecture.md are those printed."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.structure import NETWORK, Journey, named

ROOT = Path(__file__).resolve().parents[2]
WAYS = {
    "parameters → checked engine": "parameters to checked engine",
    "picture → mask": "picture to mask",
    "a click (`POST /masks`) → mask": "click to mask (POST /masks)",
}
# A row of the document: a line that the command prints, and which of its numbers.
ROWS = {
    "modules in the largest folder": ("in the largest folder", 0),
    "longest chain of imports": ("longest chain of imports", 0),
    **{f"hops, {way}": (line, 0) for way, line in WAYS.items()},
    **{f"to the network, {way}": (line, 1) for way, line in WAYS.items()},
}


def test_counts_are_what_the_command_prints() -> None:
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks/structure.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    document = (ROOT / "docs/architecture.md").read_text("utf-8")
    for row, (line, which) in ROWS.items():
        found = re.search(rf"^{re.escape(line)}\s+(.*)$", printed, re.MULTILINE)
        stated = re.search(rf"^\| {re.escape(row)} \| \d+ \| (\d+) \|$", document, re.MULTILINE)
        assert found is not None and stated is not None, row
        assert int(stated[1]) == int(re.findall(r"\d+", found[1])[which]), row


def test_a_hop_leads_on() -> None:
    top, lower, by_way_of, leaf = ("a", "top"), ("b", "lower"), ("b", "by_way_of"), ("c", "leaf")
    journey = Journey({(top, lower), (lower, by_way_of), (by_way_of, leaf), (top, leaf)})
    assert journey.crossing == {(top, lower), (by_way_of, leaf), (top, leaf)}
    assert journey.hops() == {(top, lower)}  # through a function of its own module
    assert journey.to_network() == set()


def test_the_network_is_one_module_and_its_checks_are_no_hops() -> None:
    caller, encoder = ("a", "caller"), ("b", "encoder")
    forward, op = (f"{NETWORK}.image_encoder", "forward"), (f"{NETWORK}.functional", "op")
    check = (f"{NETWORK}.layers", "check")
    work = {(caller, encoder), (encoder, forward), (forward, op)}
    journey = Journey({*work, (caller, check)})
    assert journey.hops() == journey.to_network() == {(caller, encoder), (encoder, forward)}
    assert journey.crossing - journey.hops() == {(caller, check)}


def test_a_comprehension_is_its_functions() -> None:
    assert named("Sam.embed.<locals>.<listcomp>.<locals>.<genexpr>") == "Sam.embed"
    assert named("embed.<locals>.<lambda>") == "embed.<locals>.<lambda>"
    assert named("embed.<locals>.inner") == "embed.<locals>.inner"

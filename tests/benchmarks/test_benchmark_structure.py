"""The counts of docs/architecture.md are those that the command prints."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A row of the document: a line that the command prints, and which of its numbers.
ROWS = {
    "modules in the largest folder": ("in the largest folder", 0),
    "longest chain of imports": ("longest chain of imports", 0),
    "hops, parameters → checked engine": ("parameters to checked engine", 0),
    "hops, picture → mask": ("picture to mask", 0),
    "hops, a click (`POST /masks`) → mask": ("click to mask (POST /masks)", 0),
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

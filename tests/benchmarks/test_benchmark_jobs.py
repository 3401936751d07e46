"""The benchmark of jobs: what a process tree has had of the CPU, and what a picture costs."""

import subprocess
import sys

import pytest

from benchmarks.jobs import MODES, SIZES, Processes, per_picture, table

BURN = "import time\nwhile time.process_time() < 0.5: pass"
TREE = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n{BURN}"


def test_cpu_time_is_that_of_the_whole_tree() -> None:
    process = subprocess.Popen([sys.executable, "-c", TREE])
    seen = Processes(process.pid)
    while process.poll() is None:
        seen.look()
    assert 0.9 <= seen.seconds <= 3.0  # half a second each, and two starts


def test_what_a_picture_costs_is_the_difference() -> None:
    short, long = map(str, SIZES)
    further = SIZES[1] - SIZES[0]
    sizes = {short: {"wall": 5.0, "cpu": 7.0}, long: {"wall": 5.0 + further, "cpu": 7.0 + further}}
    record = {"best": dict.fromkeys(MODES, sizes)}
    assert all(per_picture(record, mode, "wall") == pytest.approx(1.0) for mode in MODES)
    assert table(record).count(" 1.00 s |") == 2 * len(MODES)

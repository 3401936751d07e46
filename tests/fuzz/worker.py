"""A campaign's worker: number in on stdin, outcome out on stdout, memory bounded.

Started by ``harness.Worker`` with the module and the name of a target, and a folder for its files.
"""

import json
import os
import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import run_case

MEMORY_BYTES = 2 << 30  # more than a worker has when it starts


def main() -> None:
    """Runs cases until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints, prints to the log
    module, name, folder = sys.argv[1:]
    target = import_module(module).TARGETS[name]
    case = target.open(Path(folder))
    _limit_memory()
    answers.write("\n")
    answers.flush()
    for line in sys.stdin:
        begun = time.process_time()
        outcome, detail = run_case(target, case, int(line))
        seconds = time.process_time() - begun
        answer = {"outcome": outcome, "detail": detail, "cpu_seconds": round(seconds, 3)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit_memory() -> None:
    have = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (have, have))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()

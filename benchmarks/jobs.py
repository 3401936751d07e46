"""A job in one process with two threads, and by two local Ray workers of a thread each.

    python benchmarks/jobs.py                    prints the table
    python benchmarks/jobs.py --output FILE      writes the record as well

Both run `samtrt everything` on the demo model, each for a short and for a long job: what start-up
costs is in both, and the difference is what the further pictures cost. Rounds alternate, and of
each figure the best is kept: other programs on the machine can only add to it. CPU time is that of
the command and of all processes that it starts, Ray's own included. The files of the two are
compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
from PIL import Image

from samtrt.console import progress_steps, run_script
from samtrt.errors import SamtrtError
from samtrt.files import write_json
from samtrt.pictures.reading import load_image
from samtrt.reports.benchmarking import describe, environment, markdown_table

ROOT = Path(__file__).resolve().parent.parent
MODES = {"one process, 2 threads": ["--workers", "1"], "2 Ray workers": ["--workers", "2"]}
SIZES = (4, 16)  # pictures
_POINTS = 4  # a side
_SAMPLE_SECONDS = 0.1


class Processes:
    """CPU seconds of a process and of all that it starts, those that have ended included.

    A process is looked at ten times a second, so that of one that ends a tenth of a second at most
    is missed.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seconds: dict[tuple[int, float], float] = {}

    def look(self) -> None:
        """Takes down how much each has had."""
        try:
            running = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in running:
            try:
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    @property
    def seconds(self) -> float:
        """Of all so far."""
        return sum(self._seconds.values())


def draw_pictures(folder: Path, count: int) -> None:
    """The demo picture, shifted otherwise each time: as much work, and no two alike."""
    image = load_image(ROOT / "examples/sam/images/demo.jpg")
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.roll(image, 37 * number, axis=1)).save(folder / f"{number:03}.jpg")


def run_job(model: Path, pictures: Path, out: Path, options: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of one job.

    Raises:
        SamtrtError: it failed.
    """
    command = [
        *(sys.executable, "-m", "samtrt", "everything", pictures, "--params", model),
        *("--output-dir", out, "--format", "json", "--points-per-side", _POINTS, *options),
    ]
    # As many threads as cores in one process; Ray's workers set their share themselves.
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        job = subprocess.Popen(
            list(map(str, command)), env=environ, stdout=subprocess.DEVNULL, stderr=said
        )
        processes = Processes(job.pid)
        while job.poll() is None:
            processes.look()
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
        if job.returncode:
            said.seek(0)
            raise SamtrtError(f"a job failed: {said.read().decode()[-500:]}")
    return {"wall": seconds, "cpu": processes.seconds}


def measure(rounds: int) -> dict[str, Any]:
    """The record: of each mode and size the best of the rounds, and what a picture costs."""
    with (
        tempfile.TemporaryDirectory() as name,
        progress_steps(rounds * len(MODES) * len(SIZES)) as step,
    ):
        folder = Path(name)
        model = _build_model(folder / "model")
        for size in SIZES:
            draw_pictures(folder / str(size), size)
        best: dict[str, dict[str, dict[str, float]]] = {mode: {} for mode in MODES}
        for number in range(rounds):
            for size in SIZES:
                files = []
                for mode, options in MODES.items():
                    step(f"round {number + 1}: {mode}, {size} pictures")
                    out = folder / "out"
                    found = run_job(model, folder / str(size), out, options)
                    files.append({path.name: path.read_bytes() for path in out.iterdir()})
                    shutil.rmtree(out)
                    kept = best[mode].setdefault(str(size), found)
                    best[mode][str(size)] = {key: min(kept[key], found[key]) for key in found}
                if len(files[0]) != size or files[0] != files[1]:
                    raise SamtrtError("the files of the two differ, and no time is worth telling")
    return {"environment": environment(), "rounds": rounds, "best": best}


def per_picture(record: dict[str, Any], mode: str, what: str) -> float:
    """Seconds that each further picture costs."""
    short, long = (record["best"][mode][str(size)][what] for size in SIZES)
    return (long - short) / (SIZES[1] - SIZES[0])


def table(record: dict[str, Any]) -> str:
    """The two side by side."""
    rows = [
        [
            mode,
            f"{per_picture(record, mode, 'wall'):.2f} s",
            f"{per_picture(record, mode, 'cpu'):.2f} s",
            f"{record['best'][mode][str(SIZES[0])]['wall']:.0f} s",
        ]
        for mode in MODES
    ]
    header = ("", "a further picture", "its CPU time", f"a whole job of {SIZES[0]}")
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts")
    parser.add_argument("--output", type=Path, help="where the record goes")
    arguments = parser.parse_args()
    record = measure(arguments.rounds)
    print(describe(record["environment"]))
    print(table(record))
    if arguments.output:
        write_json(arguments.output, record)


def _build_model(folder: Path) -> Path:
    """The demo model with its engine for the CPU."""
    demo = ROOT / "examples/sam/sam_models/sam_demo.pth"
    for command in (
        ["convert", "--checkpoint", demo, "--output-dir", folder],
        ["build", "--params", folder, "--output-dir", folder / "engine", "--backend", "cpu"],
    ):
        subprocess.run(
            [sys.executable, "-m", "samtrt", *map(str, command)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))

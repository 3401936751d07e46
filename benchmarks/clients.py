"""Programs that use SAM, each with its own image encoder and with ours: masks compared, work timed.

    python benchmarks/clients.py                        # all that `make clients` has set up
    python benchmarks/clients.py cellpose samgeo micro-sam --weights vit_b --device cuda

The programs are in ``tests/clients/programs``; each runs in the environment of its package. Turns
alternate, and the best of each kind counts. Seconds are of the program's whole work, its encoder,
its decoder and all that it does to masks, without start and import.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samtrt.checkpoints.config import vit_b, vit_l
from samtrt.checkpoints.parameters import random_parameters
from samtrt.console import run_script
from samtrt.errors import InputError
from samtrt.files import write_json
from samtrt.reports.benchmarking import environment, markdown_table

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests/clients/programs"
ENVIRONMENTS = ROOT / ".venv-clients"
RUN_WITH = "`python -m samtrt.run_with`"
LIMIT = 900  # seconds a turn


@dataclass(frozen=True)
class Client:
    """A program that uses SAM.

    Attributes:
        name: also of its requirements, where ``environment`` is empty.
        changes: what its user does, by mode.
        environment: of another client, where both stand in one.
        after: the client whose files it reads.
    """

    name: str
    changes: dict[str, str]
    environment: str = ""
    after: str = ""

    @property
    def program(self) -> Path:
        """Named with a line at the end, since a module may not hide its package."""
        return PROGRAMS / f"{self.name.replace('-', '_')}_.py"

    @property
    def folder(self) -> Path:
        """Its environment, named like the file of its requirements; several may share one."""
        return ENVIRONMENTS / (self.environment or self.name)

    @property
    def python(self) -> Path:
        """Of its environment."""
        return self.folder / "bin/python"


def _changes(accelerate: str, *others: str) -> dict[str, str]:
    known = {"run_with": RUN_WITH, "decoder": "`samtrt export-decoder --contract meta`"}
    found = {"accelerate": f"`samtrt.accelerate({accelerate})`"} if accelerate else {}
    return {**found, **{other: known[other] for other in others}}


CLIENTS = (
    Client("transformers", _changes("model")),
    Client("supervision", _changes("sam", "run_with")),
    Client("segment-anything-py", _changes("sam", "run_with")),
    Client("segment-anything-hq", _changes("sam")),
    Client("cellpose", _changes("model.net")),
    Client("samgeo", _changes("model.sam", "run_with")),
    Client("micro-sam", _changes("predictor.model", "run_with")),
    Client("micro-sam-tests", _changes("predictor.model", "run_with"), "micro-sam"),
    Client("napari-segment-anything", _changes("widget._sam", "run_with"), "micro-sam"),
    Client("autodistill", _changes("model.predictor.predictor.model", "run_with")),
    Client("samexporter", _changes("", "run_with", "decoder")),
    Client("x-anylabeling", _changes("", "run_with", "decoder"), after="samexporter"),
)


def client(name: str) -> Client:
    """
    Raises:
        InputError: no client has that name.
    """
    for found in CLIENTS:
        if found.name == name:
            return found
    raise InputError(f"no client {name!r}; expected some of {', '.join(c.name for c in CLIENTS)}")


def clients(names: Sequence[str]) -> list[Client]:
    """Those of these names; of the one name ``all`` every client.

    Raises:
        InputError: as ``client``.
    """
    return list(CLIENTS) if list(names) == ["all"] else [client(name) for name in names]


def run_turn(client: Client, mode: str, folder: Path, options: Sequence[str] = ()) -> None:
    """Runs its program; the arrays are in ``folder/NAME/MODE.npz``, its record beside them.

    Raises:
        InputError: the program has failed; with its last lines.
    """
    command = [str(client.program), mode, str(folder / client.name), *options]
    if mode == "run_with" and not client.after:
        command = ["-m", "samtrt.run_with", *command]
    done = subprocess.run(
        [str(client.python), *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise InputError(f"{client.name} has ended with {done.returncode} ({mode}):\n{last}")


def record_of(client: Client, mode: str, folder: Path) -> dict[str, Any]:
    """Its package, its version and its seconds."""
    found: dict[str, Any] = json.loads((folder / client.name / f"{mode}.json").read_text("utf-8"))
    return found


def agreement(client: Client, mode: str, folder: Path) -> dict[str, float]:
    """How far two turns agree, array by array.

    Of masks it is the smallest IoU of any, of label pictures that of any label, of other numbers
    1 − the relative difference in L2; 0 where their number or size differs.
    """
    own, ours = (np.load(folder / client.name / f"{kind}.npz") for kind in ("own", mode))
    return {name: _agreement(own[name], ours[name]) for name in own.files}


def _agreement(own: np.ndarray, ours: np.ndarray) -> float:
    if own.shape != ours.shape or own.dtype.kind != ours.dtype.kind or not own.size:
        return 0.0
    if own.dtype.kind == "f":
        return 1 - float(np.linalg.norm(ours - own) / np.linalg.norm(own))
    if own.dtype.kind in "iu":
        labels = np.union1d(own, ours)
        return min(_iou(own == label, ours == label) for label in labels)
    if own.ndim == 2:
        own, ours = own[None], ours[None]
    masks = own.reshape(-1, *own.shape[-2:]), ours.reshape(-1, *ours.shape[-2:])
    return min(_iou(*pair) for pair in zip(*masks, strict=True))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def measured(client: Client, folder: Path, rounds: int, options: Sequence[str]) -> list[dict]:
    """A row for each mode, after ``rounds`` turns of each kind in alternation."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for mode in ("own", *client.changes):
            run_turn(client, mode, folder, ["--rounds=1", *options])
            seconds = min(record_of(client, mode, folder)["seconds"], default=float("nan"))
            best[mode] = min(best.get(mode, seconds), seconds)
    about = record_of(client, "own", folder)
    return [
        {
            "client": client.name,
            "package": f"{about['package']} {about['version']}",
            "changes": change,
            "agreement": min(agreement(client, mode, folder).values()),
            "seconds_own": best["own"],
            "seconds": best[mode],
        }
        for mode, change in client.changes.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, as docs/clients.md has them."""
    header = ["client", "package", "what changes", "least agreement", "own s", "ours s", "times"]
    return markdown_table(
        header,
        [
            [
                row["client"], row["package"], row["changes"], f"{row['agreement']:.5f}",
                f"{row['seconds_own']:.2f}", f"{row['seconds']:.2f}",
                f"{row['seconds_own'] / row['seconds']:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def weights(kind: str, folder: Path) -> list[str]:
    """Options for a checkpoint: the demo's, or seeded random numbers of a full-size model."""
    if kind == "demo":
        return []
    import torch

    parameters = random_parameters({"vit_b": vit_b, "vit_l": vit_l}[kind](), 0)
    path = folder / f"{kind}.pth"
    torch.save({k: torch.from_numpy(v) for k, v in parameters.tensors.items()}, path)
    return [f"--checkpoint={path}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", help="names; all that are set up by default")
    parser.add_argument("--weights", choices=("demo", "vit_b", "vit_l"), default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each kind")
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    chosen = [client(name) for name in arguments.clients] or [
        found for found in CLIENTS if found.python.exists() and not found.after
    ]
    for number, found in enumerate(chosen):
        if found.after and client(found.after) not in chosen[:number]:
            raise InputError(
                f"{found.name} reads the files that {found.after} writes; name {found.after} "
                f"before it: {found.after} {found.name}"
            )
        if not found.python.exists():
            raise InputError(f"{found.name} is not set up; run make clients CLIENTS={found.name}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--device={arguments.device}", *weights(arguments.weights, Path(folder))]
        for number, found in enumerate(chosen, 1):
            print(f"{number} of {len(chosen)}: {found.name}", file=sys.stderr, flush=True)
            rows += measured(found, Path(folder), arguments.rounds, options)
            if arguments.json:  # after each, since all of them take long
                about = {
                    "weights": arguments.weights, "device": arguments.device,
                    "rounds": arguments.rounds, "environment": environment(), "rows": rows,
                }  # fmt: skip
                write_json(arguments.json, about)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_script(main))

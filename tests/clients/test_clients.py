"""Real programs with their own image encoder and with ours: the same masks.

``make clients`` sets their environments up and runs these; elsewhere a client without one is
skipped. ``SAMTRT_CLIENTS`` names those that must be there, or is ``all``.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmarks.clients
from benchmarks.clients import CLIENTS, Client, agreement, client, clients, run_turn
from samtrt.errors import InputError

REQUIRED = [found.name for found in clients(os.environ.get("SAMTRT_CLIENTS", "").split())]
TURNS = [(found, mode) for found in CLIENTS for mode in found.changes]
done: set[tuple[str, str]] = set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


def turn(found: Client, mode: str, folder: Path) -> None:
    """Once each."""
    if (found.name, mode) in done:
        return
    if found.after:
        turn(client(found.after), mode, folder)
    if not found.python.exists():
        pytest.skip(f"{found.name} is not set up; make clients CLIENTS={found.name} does it")
    run_turn(found, mode, folder)
    done.add((found.name, mode))


@pytest.mark.parametrize(
    ("found", "mode"), TURNS, ids=[f"{found.name}-{mode}" for found, mode in TURNS]
)
def test_masks_agree(found: Client, mode: str, folder: Path) -> None:
    if REQUIRED and found.name not in REQUIRED:
        pytest.skip(f"SAMTRT_CLIENTS does not name {found.name}")
    if found.name in REQUIRED and not found.python.exists():
        pytest.fail(f"{found.name} is not set up, and SAMTRT_CLIENTS names it")
    turn(found, "own", folder)
    turn(found, mode, folder)
    agreed = agreement(found, mode, folder)
    assert agreed and min(agreed.values()) >= 0.999, agreed
    masks = np.load(folder / found.name / "own.npz").values()
    assert any(mask.dtype.kind in "biu" and mask.any() for mask in masks)


def test_an_unknown_client_is_one_line() -> None:
    command = [sys.executable, str(Path(__file__).with_name("install.py")), "cellpose", "celpose"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no client 'celpose'; expected some of transformers,")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("names", [["x-anylabeling"], ["x-anylabeling", "samexporter"]])
def test_a_client_of_anothers_files_is_measured_after_it(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["clients.py", *names])
    with pytest.raises(InputError, match="name samexporter before it: samexporter x-anylabeling"):
        benchmarks.clients.main()

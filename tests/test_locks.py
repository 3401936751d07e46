"""Locks and licences belong to what is required and shipped; the Makefile makes them anew."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from samtrt.server.assets import FILES

ROOT = Path(__file__).resolve().parents[1]


def program(name: str) -> ModuleType:
    """A program of the folder .ci."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, on a copy of the requirements and locks that a test may change."""
    module = program("lock")
    (tmp_path / "locks").mkdir()
    for name in module.INPUTS:
        for part in (f"{name}.txt", f"locks/{name}.txt"):
            (tmp_path / part).write_text((ROOT / part).read_text("utf-8"), "utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LOCKS", tmp_path / "locks")
    return module


def test_locks_are_of_the_requirements(lock: ModuleType) -> None:
    assert {path.stem for path in ROOT.glob("requirements*.txt")} == set(lock.INPUTS)
    for name in lock.INPUTS:
        assert lock.problems(name) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "problem"),
    [
        ("requirements.txt", "numpy>=", "polars\nnumpy>=", "of other requirements"),
        ("requirements.txt", "torch==2.13.0", "torch==2.12.0", "of other requirements"),
        ("requirements-server.txt", "uvicorn", "uvicorn[standard]", "of other requirements"),
        ("locks/requirements.txt", "\npillow==", "\npillow==9.", "for pillow"),
        ("locks/requirements.txt", "\npillow==", "\npillows==", "nothing for pillow"),
        ("locks/requirements.txt", "\nrich==", "\n--index-url https://a\nrich==", "an index"),
        ("locks/requirements-gpu.txt", "\ntorch==", "\nmorch==", "nothing for torch"),
    ],
)
def test_other_locks_are_told(
    lock: ModuleType, path: str, old: str, new: str, problem: str
) -> None:
    file = lock.ROOT / path
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")
    found = [line for name in lock.INPUTS for line in lock.problems(name)]
    assert any(problem in line for line in found), found


def test_a_pin_without_a_hash_is_told(lock: ModuleType) -> None:
    file = lock.LOCKS / "requirements.txt"
    lines = file.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("pillow=="))
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("    --hash"))
    lines[start:end] = [lines[start].rstrip(" \\")]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    (found,) = lock.problems("requirements")
    assert found.startswith("requirements.txt has no hash for pillow==")


def test_comments_and_order_change_nothing(lock: ModuleType) -> None:
    file = lock.ROOT / "requirements-server.txt"
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join(["# another comment", *reversed(lines)]) + "\n", "utf-8")
    assert lock.problems("requirements-server") == []


def test_licences_are_of_what_a_wheel_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    third_party = program("third_party")
    assert third_party.problems() == []
    text = third_party.DOCUMENT.read_text("utf-8")
    for name in FILES:
        assert name in text
    assert "SIL OPEN FONT LICENSE" in (third_party.LICENSES / "inter.txt").read_text("utf-8")
    assert "Microsoft Corporation" in (third_party.LICENSES / "onnxruntime.txt").read_text("utf-8")
    monkeypatch.setitem(FILES, "new.js", f"{third_party.RUNTIME}/dist/new.js")
    assert third_party.problems() == ["THIRD_PARTY.md is of other packages"]

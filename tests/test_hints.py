"""Hints name commands that can be typed where the program was started."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from samtrt import hints

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an activated environment."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")


def started_as(monkeypatch: pytest.MonkeyPatch, program: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(program), "whatever"])


@pytest.mark.usefixtures("path")
def test_console(monkeypatch: pytest.MonkeyPatch) -> None:
    started_as(monkeypatch, BIN / "samtrt")
    assert hints.command("build", "--params", "a b") == "samtrt build --params 'a b'"
    started_as(monkeypatch, ROOT / "samtrt" / "__main__.py")
    assert hints.command("convert") == "python -m samtrt convert"


@pytest.mark.usefixtures("path")
def test_scripts_name_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    started_as(monkeypatch, "sam/run.py")
    assert hints.command("export-decoder") == "python sam/export_decoder.py"
    assert hints.command("serve") == "samtrt serve"  # there is no such script
    started_as(monkeypatch, "elsewhere/run.py")  # somebody else's
    assert hints.command("build") == "samtrt build"


def test_without_an_activated_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are named by where they are."""
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(BIN.parent)
    for hint in (hints.command("--help"), hints.install("gpu")):
        program = Path(shlex.split(hint)[0])
        assert program.parent == Path(BIN.name) and program.is_file()
    monkeypatch.chdir(ROOT)
    started_as(monkeypatch, "examples/sam/run.py")
    words = shlex.split(hints.command("convert", "--help"))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "--checkpoint" in done.stdout


@pytest.mark.usefixtures("path")
def test_extras_of_a_checkout_and_of_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    for extra, file in hints.REQUIREMENTS.items():
        assert (ROOT / file).is_file()
        assert hints.install(extra) == f"pip install -r {file}"
    monkeypatch.setattr(hints, "_CHECKOUT", tmp_path)
    assert hints.install("server") == "pip install 'samtrt[server]'"


@pytest.mark.usefixtures("path")
def test_an_environment_without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """uv makes such environments; without uv there is the pip that Python brings along."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hints, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(hints, "find_spec", lambda name: None)
    uv = tmp_path / "tools" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert hints.install("server") == (
        "python -m ensurepip && python -m pip install 'samtrt[server]'"
    )
    monkeypatch.setenv("PATH", f"{uv.parent}{os.pathsep}{os.environ['PATH']}")
    assert hints.install("server") == "uv pip install 'samtrt[server]'"
    assert hints.install_packages("shapely") == "uv pip install shapely"
    monkeypatch.delenv("VIRTUAL_ENV")
    assert shlex.split(hints.install_packages("shapely"))[:4] == (
        ["uv", "pip", "install", "--python"]
    )
    assert Path(shlex.split(hints.install_packages("shapely"))[4]).samefile(sys.executable)


def test_what_is_typed_without_pip(tmp_path: Path) -> None:
    """In an environment that has none: the hint's first command brings it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    script = "from samtrt import hints; print(hints.install_packages('--version'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{python.parent}:/usr/bin:/bin"}
    environment.pop("VIRTUAL_ENV", None)
    hint = subprocess.run(
        [python, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert hint == "python -m ensurepip && python -m pip install --version"
    first = hint.partition(" && ")[0]
    subprocess.run(first, shell=True, env=environment, capture_output=True, check=True)
    found = subprocess.run(
        ["python", "-m", "pip", "--version"], env=environment, capture_output=True, text=True
    )
    assert str(tmp_path) in found.stdout

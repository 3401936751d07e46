"""How this program was started, so that a hint names a command that its user can type."""

import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent

# The scripts of examples/sam, and the commands that they are doors to.
SCRIPTS = {
    "convert": "params_convert.py",
    "build": "build.py",
    "export-decoder": "export_decoder.py",
    "run": "run.py",
    "compare": "compare.py",
    "benchmark": "benchmark.py",
    "evaluate": "evaluate.py",
}

# An extra of the package, and the file of a checkout that asks for the same.
REQUIREMENTS = {
    "export": "requirements.txt",
    "rtx": "requirements.txt",
    "server": "requirements-server.txt",
    "gpu": "requirements-gpu.txt",
    "compare": "requirements-test.txt",
    "peers": "requirements-test.txt",
    "ray": "requirements-ray.txt",
    "cloud": "requirements-ray.txt",
    "geo": "requirements-ray.txt",
    "zarr": "requirements-ray.txt",
}


def command(name: str, *arguments: object) -> str:
    """A command of ours as it can be typed here: ``samtrt build …``, or the script of that name
    where a script of examples/sam was started.

    Args:
        name: the console's name of the command.
        arguments: quoted where a shell needs it.
    """
    started = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    if started is not None and started.name in SCRIPTS.values() and name in SCRIPTS:
        script = started.with_name(SCRIPTS[name])
        if script.is_file():
            return shlex.join([*_python(), str(script), *map(str, arguments)])
    return shlex.join([*_console(), name, *map(str, arguments)])


def install(extra: str) -> str:
    """How to install what an extra of the package brings: from a checkout's requirements where
    the package is one, else by the extra's name."""
    file = _CHECKOUT / REQUIREMENTS.get(extra, "")
    if (_CHECKOUT / "pyproject.toml").is_file() and file.is_file():
        return _pip_install("-r", _from_here(file))
    return _pip_install(f"samtrt[{extra}]")


def install_packages(*names: str) -> str:
    """How to install packages of these names."""
    return _pip_install(*names)


def _pip_install(*arguments: str) -> str:
    """With pip where this environment has it. Those of uv have none: uv installs into them; and
    Python brings a pip along for where there is neither."""
    if find_spec("pip") is not None:
        return shlex.join([*_tool("pip"), "install", *arguments])
    if shutil.which("uv") is not None:
        active = os.environ.get("VIRTUAL_ENV")
        is_active = active is not None and Path(active).absolute() == Path(sys.prefix).absolute()
        python = [] if is_active else ["--python", _from_here(Path(sys.executable))]
        return shlex.join(["uv", "pip", "install", *python, *arguments])
    first = shlex.join([*_python(), "-m", "ensurepip"])
    return f"{first} && {shlex.join([*_python(), '-m', 'pip', 'install', *arguments])}"


def _console() -> list[str]:
    started = Path(sys.argv[0]) if sys.argv else Path()
    if started.name == "__main__.py" and started.parent.name == "samtrt":
        return [*_python(), "-m", "samtrt"]
    return _tool("samtrt")


def _tool(name: str) -> list[str]:
    """A program of this environment: by its name where the shell finds it, else by its path, else
    as a module of this Python."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == beside.absolute():
        return [name]
    return [_from_here(beside)] if beside.is_file() else [*_python(), "-m", name]


def _python() -> list[str]:
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and Path(found).absolute().parent == Path(sys.executable).parent:
            return [name]
    return [_from_here(Path(sys.executable))]


def _from_here(path: Path) -> str:
    """Relative to the current folder where the path lies below it, absolute elsewhere."""
    try:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    except OSError:  # the current folder is gone
        return str(path)

"""Runs a script of examples/sam in this process, as its user would."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from samtrt.console import run_script

EXAMPLES = Path(__file__).resolve().parents[1] / "examples/sam"


def load_script(name: str) -> ModuleType:
    """The script's module, without running it."""
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_script(module: ModuleType, *flags: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", [f"{module.__name__}.py", *map(str, flags)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = run_script(module.main)
    return status, out.getvalue(), err.getvalue()

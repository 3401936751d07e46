"""Kernels as PTX for whoever launches them later: what they are given, and on which GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from triton_kernels import DEVICE  # noqa: F401  (skips where there is no Triton)

from samtrt.encoders.tensorrt.standalone import AOT_PLUGINS_NEED
from samtrt.errors import EngineError
from samtrt.kernels.triton.ahead_of_time import CAPABILITY, without_lines, without_scratch

TESTS = Path(__file__).resolve().parents[1]
# Ampere, Hopper, and a Blackwell that has no tensor memory.
CAPABILITIES = ("80", "90", "120")


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(TESTS.parent)
    command = [sys.executable, str(TESTS / "compiled_ahead.py"), "vit_h", *CAPABILITIES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = map(json.loads, done.stdout.splitlines())
    return {report["function"]: report for report in reports}


def test_one_text_runs_on_all_gpus(kernels: dict[str, dict[str, Any]]) -> None:
    assert len(kernels) == 3
    for kernel in kernels.values():
        assert kernel["head"] == [".version 8.0", ".target sm_80"]
        for capability in CAPABILITIES:
            assert kernel["assembled"][capability] == {"status": 0, "spilled": [0]}, kernel
    assert float(AOT_PLUGINS_NEED) * 10 == CAPABILITY


def test_they_are_given_what_tensorrt_passes(kernels: dict[str, dict[str, Any]]) -> None:
    """Addresses of what is read, 32-bit sizes, addresses of what is written, and nothing more."""
    parameters = {name: kernel["parameters"] for name, kernel in kernels.items()}
    assert parameters == {
        "_window_attention_kernel": ["u64"] * 4 + ["u32"] * 5 + ["u64"],
        "_relative_positions_kernel": ["u64"] * 3 + ["u32"] * 3 + ["u64"] * 2,
        "_global_attention_kernel": ["u64"] * 3 + ["u32"] * 3 + ["u64"],
    }
    for kernel in kernels.values():
        assert kernel["threads"] == 128
        assert 0 < kernel["shared_bytes"] <= 48 * 1024
        assert kernel["paths"] == []


PTX = """\
.version 8.0
.entry copy(
\t.param .u64 .ptr .global .align 1 copy_param_0,
\t.param .u64 .ptr .global .align 1 copy_param_1
)
.reqntid 128
{
\t.loc\t1 12 0
\tld.param.b64 \t%rd1, [copy_param_0];
}
\t.file\t1 "/home/somebody/copy.py"
\t.section\t.debug_abbrev
\t{
.b8 1
\t}
"""


def test_scratch_memory_is_not_asked_for() -> None:
    kept = without_scratch(PTX, 1)
    assert "copy_param_0\n)" in kept and "copy_param_1" not in kept
    assert without_scratch(kept, 1) == kept
    with pytest.raises(EngineError, match="copy reads scratch memory"):
        without_scratch(PTX.replace("[copy_param_0]", "[copy_param_1]"), 1)


def test_files_of_the_machine_are_not_named() -> None:
    kept = without_lines(PTX)
    assert kept == PTX[: PTX.index("\t.loc")] + "\tld.param.b64 \t%rd1, [copy_param_0];\n}\n"

"""The machine code of the CUDA C++ kernels, compiled by NVRTC without a GPU, and where they run."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_kernels import ON_GPU

pytest.importorskip("cuda.bindings")
import triton

from samtrt.kernels.hopper.compiler import Program

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ON_HOPPER = ON_GPU and torch.cuda.get_device_capability()[0] == 9
NEEDS_HOPPER = pytest.mark.skipif(not ON_HOPPER, reason="no Hopper GPU")
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def assembly(program: Program, option: str = "-sass") -> str:
    """What ``cuobjdump`` says of the program's machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.compile())
        file.flush()
        command = [str(CUOBJDUMP), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def machine_code(program: Program) -> dict[str, Any]:
    """Registers and stack bytes a thread, the code's size, how often some instructions occur."""
    usage, code = assembly(program, "-res-usage"), assembly(program)
    resources = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    count = {key: len(re.findall(rf"\b{key}\b", code)) for key in ("LDL", "STL", "HGMMA")}
    waits = len(re.findall(r"WARPGROUP\.DEPBAR", code))
    return {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]),
        "spills": count["LDL"] + count["STL"],
        "wgmma": count["HGMMA"],
        "waits": waits,
        "bytes": 16 * len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/ ", code, re.MULTILINE)),
    }

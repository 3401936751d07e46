"""Compiles a model's attention ahead of time, has it assembled for GPUs, and prints what came out.

    python tests/compiled_ahead.py vit_h 80 90 120

For test_ahead_of_time.py, in a process of its own: Triton reads ``TRITON_INTERPRET`` when imported.
Prints, as JSON, a line a kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton

from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.portable import PORTABLE
from samtrt.kernels.triton.ahead_of_time import compiled
from samtrt.kernels.triton.global_attention import global_launch, relative_launch
from samtrt.kernels.triton.launch import Launch
from samtrt.kernels.triton.window_attention import window_launch

# The newer of the two, which knows all of them.
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"


def launches(config: EncoderConfig) -> list[tuple[Launch, dict[str, str]]]:
    """With the types of what the kernels read and write."""
    side, heads, head_dim = config.grid_size, config.num_heads, config.head_dim
    half = {"qkv_ptr": "fp16", "out_ptr": "fp16"}
    relative = {"rel_h_ptr": "fp32", "rel_w_ptr": "fp16"}
    tables = dict.fromkeys(("table_h_ptr", "table_w_ptr"), "fp16")
    window = dict.fromkeys(("bias_ptr", "table_ptr", "places_ptr"), "fp16")
    return [
        (
            window_launch(
                1, side, side, config.window_size, heads, head_dim, PORTABLE.window
            ),
            {**half, **window},
        ),
        (
            relative_launch(1, side, side, heads, head_dim),
            {"qkv_ptr": "fp16", **tables, **relative},
        ),
        (global_launch(1, side, side, heads, head_dim, PORTABLE.globals), {**half, **relative}),
    ]  # fmt: skip


def assembled(text: str, capability: str) -> dict[str, Any]:
    """What ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        command = [PTXAS, "-v", f"-arch=sm_{capability}", source, "-o", Path(folder) / "cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    spilled = re.findall(r"(\d+) bytes spill stores", done.stderr)
    return {"status": done.returncode, "spilled": list(map(int, spilled))}


def main(model: str, capabilities: list[str]) -> None:
    for launch, types in launches(getattr(sizes, model)()):
        made = compiled(launch, types)
        entry = made.text[made.text.index(".entry") :].partition("{")[0]
        report = {
            "function": made.function,
            "threads": made.threads,
            "shared_bytes": made.shared_bytes,
            "head": re.findall(r"^\.(?:version|target) .*", made.text, re.M),
            "parameters": re.findall(r"\.param \.(\w+)", entry),
            "paths": re.findall(r"/\w+/", re.sub(r"//.*", "", made.text)),
            "assembled": {each: assembled(made.text, each) for each in capabilities},
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

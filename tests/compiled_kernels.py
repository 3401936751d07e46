"""Compiles the kernels for an architecture without a GPU and prints what came out, as JSON.

    python tests/compiled_kernels.py 90 vit_b vit_h

For test_kernel_code.py, in a process of its own: Triton reads ``TRITON_INTERPRET`` when imported.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from samtrt.checkpoints import config as sizes
from samtrt.encoders.cuda.portable import HOPPER, PORTABLE, Tiles
from samtrt.kernels.triton import gemm, global_attention, norm, window_attention

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class NoGpu:
    """A driver that answers what the compiler asks and can launch nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def launch_all(model: str, tiles: Tiles) -> None:
    """Every kernel of one model, at its shapes and with the tiles that ship."""
    half = torch.float16
    config: sizes.EncoderConfig = getattr(sizes, model)()
    side, c, heads, d = config.grid_size, config.embed_dim, config.num_heads, config.head_dim
    tokens = side * side
    vector = torch.empty(c)
    x, normed = (torch.empty(tokens, c, dtype=half) for _ in range(2))
    qkv, out = (torch.empty(1, side, side, n, dtype=half) for n in (3 * c, c))
    norm.layer_norm(x, vector, vector, vector, normed, 1e-6)
    weight = torch.empty(config.mlp_dim, c, dtype=half)
    hidden = torch.empty(tokens, config.mlp_dim, dtype=half)
    if tiles.gemm is not None:
        gemm.linear_gelu(x, weight, torch.empty(config.mlp_dim, dtype=half), hidden, tiles.gemm)
    window_attention.window_attention(
        qkv,
        torch.empty(3 * c, dtype=half),
        torch.empty(64, d, dtype=half),
        torch.empty(256, 32, dtype=half),
        out,
        config.window_size,
        heads,
        tiles.window,
    )
    table = torch.empty(2 * side - 1, d, dtype=half)
    rel_h, rel_w = torch.empty(1, heads, side, tokens), torch.empty(1, heads, tokens, side).half()
    global_attention.relative_positions(qkv, table, table, rel_h, rel_w, heads)
    global_attention.global_attention(qkv, rel_h, rel_w, out, heads, tiles.globals)


def disassemble(cubin: bytes) -> list[tuple[str, str]]:
    """(opcode, operands) of each instruction."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?(\S+)\s*(.*?);", text, re.M)


def unwritten_uniform_registers(code: list[tuple[str, str]]) -> list[int]:
    """Uniform registers that are read and that no instruction writes."""
    written: set[int] = set()
    read: set[int] = set()
    for opcode, operands in code:
        target, _, sources = operands.partition(",")
        registers = [int(r) for r in re.findall(r"UR(\d+)", target)]
        if opcode.startswith(("U", "R2UR", "S2UR", "VOTEU", "REDUX")):
            wide = 2 if ".64" in opcode or "WIDE" in opcode else 1
            for first in registers:
                written.update(range(first, first + wide))
        else:
            sources = operands
        read.update(int(r) for r in re.findall(r"UR(\d+)", sources))
    return sorted(read - written)


def report(name: str, kernel: Any) -> dict[str, Any]:
    code = disassemble(kernel.asm["cubin"])
    count = {key: sum(o.startswith(key) for o, _ in code) for key in ("HGMMA", "HMMA", "STL")}
    return {
        "name": name,
        "wgmma": count["HGMMA"],
        "mma": count["HMMA"],
        "spill_stores": count["STL"],
        "shared_bytes": kernel.metadata.shared,
        "unwritten_uniform_registers": unwritten_uniform_registers(code),
    }


def main(capability: int, models: list[str]) -> None:
    compiled: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    gemm.multiprocessors = norm.multiprocessors = lambda device: 132
    driver.set_active(NoGpu(capability))
    for model in models:
        launch_all(model, HOPPER if capability == 90 else PORTABLE)
    print(json.dumps([report(name, kernel) for name, kernel in compiled]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

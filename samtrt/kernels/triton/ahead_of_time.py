"""Kernels compiled to PTX for a GPU that need not be here.

PTX for compute capability 8.0 runs on every GPU from there on: the driver compiles it for the one
that it finds. So it has no instruction that only later ones have, and no copy engine.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from samtrt.errors import EngineError
from samtrt.kernels.triton.launch import Launch

CAPABILITY = 80
PTX_VERSION = 80  # of CUDA 12.0
# What a kernel has without asking for more when it is launched.
SHARED_BYTES = 48 << 10
_WARP = 32
_ALIGNED = 16  # addresses and, where they are its multiples, sizes


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel.

    Attributes:
        function: its name in the text.
        text: PTX; parameters are pointers to what it reads, 32-bit sizes, pointers to what it
            writes.
        threads: threads a program.
        shared_bytes: dynamic shared memory a program.
    """

    function: str
    text: str
    threads: int
    shared_bytes: int


def compiled(launch: Launch, tensors: Mapping[str, str]) -> Ptx:
    """The kernel of a launch.

    Args:
        tensors: the types of what its pointers point to, by name, as Triton writes them: fp16,
            bf16, fp32. All memory begins at multiples of 16 bytes.

    Raises:
        EngineError: the kernel needs more than whoever launches it later gives.
    """
    names = launch.kernel.arg_names
    kinds = {name: f"*{kind}" for name, kind in tensors.items()}
    kinds.update(dict.fromkeys(launch.sizes, "i32"))
    fixed = {**launch.numbers, **launch.constants}
    assert kinds.keys() | fixed.keys() == set(names) and not kinds.keys() & fixed.keys()
    aligned = [
        name for name in kinds if name in tensors or launch.sizes[name] % _ALIGNED == 0
    ]  # fmt: skip
    source = ASTSource(
        launch.kernel,
        {name: kinds.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", _ALIGNED]] for name in aligned},
    )
    options = {**launch.options, "ptx_version": PTX_VERSION}
    made = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, _WARP), options=options)
    metadata = made.metadata
    if metadata.shared > SHARED_BYTES or metadata.global_scratch_size or metadata.num_ctas != 1:
        raise EngineError(
            f"{metadata.name} needs {metadata.shared} bytes of shared memory, expected at most "
            f"{SHARED_BYTES} and no memory of its own: it cannot be launched by TensorRT"
        )
    text = without_scratch(without_lines(made.asm["ptx"]), len(kinds))
    return Ptx(metadata.name, text, _WARP * metadata.num_warps, metadata.shared)


def without_lines(text: str) -> str:
    """PTX without the places of this machine's files that it came from."""
    text = re.sub(r"^\s*\.section\s+\.debug_\w+\s*\{[^}]*\}\n?", "", text, flags=re.M)
    return re.sub(r"^\s*\.(loc|file)\s.*\n", "", text, flags=re.M)


def without_scratch(text: str, parameters: int) -> str:
    """PTX without the pointers to scratch memory that Triton appends to a kernel's parameters.

    Args:
        parameters: how many the kernel itself has.

    Raises:
        EngineError: the kernel reads one of them.
    """
    entry = re.search(r"(\.entry\s+(\w+)\()([^)]*)\)", text)
    assert entry is not None
    declared = entry.group(3).split(",")
    for index in range(parameters, len(declared)):
        name = f"{entry.group(2)}_param_{index}"
        if len(re.findall(rf"\b{name}\b", text)) != 1:
            raise EngineError(f"{entry.group(2)} reads scratch memory, which TensorRT gives none")
    kept = ",".join(declared[:parameters]).rstrip() + "\n"
    return text[: entry.start(3)] + kept + text[entry.end(3) :]

"""Compiles CUDA C++ with NVRTC, which needs no toolkit, and keeps the machine code."""

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from samtrt.errors import EngineError
from samtrt.hints import install_packages
from samtrt.kernels.hopper.code_cache import keep_code, read_code

OPTIONS = ("--gpu-architecture=sm_90a", "--std=c++17", "-lineinfo")
FOLDER = Path(__file__).resolve().parent / "device"


@cache
def bindings() -> tuple[Any, Any]:
    try:
        from cuda.bindings import driver, nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise EngineError(
            "the cuda backend compiles its Hopper kernels with NVRTC, which could not be loaded "
            f"({error}); run `{install_packages('cuda-bindings', 'nvidia-cuda-nvrtc')}`"
        ) from error
    return driver, nvrtc


def require_compiler() -> None:
    """For who wants to know before the first launch.

    Raises:
        EngineError: NVRTC or the driver's bindings are missing.
    """
    bindings()


def checked(result: tuple[Any, ...], call: str) -> Any:
    """The value of a ``cuda.bindings`` call.

    Raises:
        EngineError: the call failed.
    """
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA: {call} failed: {status.name}")
    return values[0] if len(values) == 1 else values


def wgmma_source(width: int) -> str:
    """Definitions of ``wgmma``: accumulators [64, width], A from shared memory or from registers.

    And of ``wgmma_e4m3``, whose operands are e4m3 in shared memory. Each thread of the warpgroup
    holds width / 2 sums.
    """
    count = width // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))

    def define(parameter: str, a: str, inputs: str, operands: int, transposed: str) -> str:
        b, flag = count + operands, count + operands + 1
        return (
            f"template <int TRANSPOSED_B = 0>\n"
            f"__device__ inline void wgmma(float (&d)[{count}], {parameter}, u64 b, int add) {{\n"
            f'    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{flag}, 0;"\n'
            f'        " wgmma.mma_async.sync.aligned.m64n{width}k16.f32." ELEMENT "." ELEMENT\n'
            f'        " {{{sums}}}, {a}, %{b}, p, 1, 1, {transposed}; }}"\n'
            f"        : {outputs}\n"
            f'        : {inputs}, "l"(b), "r"(add), "n"(TRANSPOSED_B));\n'
            "}\n"
        )

    eight_bits = (
        f"__device__ inline void wgmma_e4m3(float (&d)[{count}], u64 a, u64 b, int add) {{\n"
        f'    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count + 2}, 0;"\n'
        f'        " wgmma.mma_async.sync.aligned.m64n{width}k32.f32.e4m3.e4m3"\n'
        f'        " {{{sums}}}, %{count}, %{count + 1}, p, 1, 1; }}"\n'
        f'        : {outputs}\n        : "l"(a), "l"(b), "r"(add));\n'
        "}\n"
    )
    shared = define("u64 a", f"%{count}", '"l"(a)', 1, f"0, %{count + 3}")
    fragment = ", ".join(f"%{count + i}" for i in range(4))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    registers = define("const u32 (&a)[4]", f"{{{fragment}}}", inputs, 4, f"%{count + 6}")
    return shared + registers + eight_bits


@dataclass(frozen=True)
class Program:
    """One kernel with its compile-time constants.

    Attributes:
        file: its source, in ``device/``; the kernel bears the file's name.
        constants: macros; floats are fp32.
        widths: the N of the ``wgmma`` that it uses.
        dtype: fp16 or bf16.
        headers: files of that folder that stand before it.
    """

    file: str
    constants: tuple[tuple[str, int | float], ...]
    widths: tuple[int, ...]
    dtype: torch.dtype
    headers: tuple[str, ...] = ()

    @property
    def function_name(self) -> str:
        return Path(self.file).stem

    @cached_property
    def source(self) -> str:
        primitives = (FOLDER / "primitives.cuh").read_text()
        parts = [
            f"#define {name} {value}{'f' * isinstance(value, float)}\n"
            for name, value in self.constants
        ]
        if self.dtype == torch.bfloat16:
            parts.append("#define SAMTRT_BF16\n")
        parts.append(primitives)
        parts += [wgmma_source(width) for width in self.widths]
        parts += [(FOLDER / file).read_text() for file in (*self.headers, self.file)]
        return "".join(parts)

    def machine_code(self) -> bytes:
        """The cubin, from the cache or compiled (some seconds) and put there.

        Raises:
            EngineError: NVRTC is missing or refuses the source.
        """
        code = read_code(self._cache_name)
        return self.compile_and_keep() if code is None else code

    def compile_and_keep(self) -> bytes:
        """The cubin, compiled anew and put into the cache."""
        code = self.compile()
        keep_code(self._cache_name, code)
        return code

    @property
    def _cache_name(self) -> str:
        _, nvrtc = bindings()
        version = nvrtc.nvrtcVersion()[1:]
        everything = f"{version}\n{OPTIONS}\n{self.source}"
        key = hashlib.sha256(everything.encode()).hexdigest()
        return f"{self.function_name}-{key[:32]}"

    def compile(self) -> bytes:
        """The cubin, compiled anew."""
        _, nvrtc = bindings()
        program = checked(
            nvrtc.nvrtcCreateProgram(self.source.encode(), self.file.encode(), 0, [], []),
            "nvrtcCreateProgram",
        )
        options = [option.encode() for option in OPTIONS]
        try:
            (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            if int(status) != 0:
                log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program), "log size")
                nvrtc.nvrtcGetProgramLog(program, log)
                errors = [line for line in log.decode().splitlines() if "error" in line]
                raise EngineError(f"NVRTC refuses {self.file}: {'; '.join(errors[:3])}")
            code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize")
            checked(nvrtc.nvrtcGetCUBIN(program, code), "nvrtcGetCUBIN")
        finally:
            nvrtc.nvrtcDestroyProgram(program)
        return code

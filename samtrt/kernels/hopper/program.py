"""Compiles, caches and launches CUDA C++ through NVRTC and the driver; needs no toolkit."""

import ctypes
import hashlib
import logging
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samtrt.errors import EngineError, SamtrtError
from samtrt.files import replacing

ARCHITECTURE = "sm_90a"
FOLDER = Path(__file__).resolve().parent
CACHE_VARIABLE = "SAMTRT_CACHE_DIR"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where machine code is kept: ``$SAMTRT_CACHE_DIR``, or ``samtrt`` in the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samtrt"


@cache
def _bindings() -> tuple[Any, Any]:
    try:
        from cuda.bindings import driver, nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise EngineError(
            "the cuda backend compiles its Hopper kernels with NVRTC, which could not be loaded "
            f"({error}); pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    return driver, nvrtc


def require_compiler() -> None:
    """For who wants to know before the first launch.

    Raises:
        EngineError: NVRTC or the driver's bindings are missing.
    """
    _bindings()


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

    Each thread of the warpgroup holds width / 2 sums.
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

    shared = define("u64 a", f"%{count}", '"l"(a)', 1, f"0, %{count + 3}")
    fragment = ", ".join(f"%{count + i}" for i in range(4))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    registers = define("const u32 (&a)[4]", f"{{{fragment}}}", inputs, 4, f"%{count + 6}")
    return shared + registers


@dataclass(frozen=True)
class Program:
    """One kernel with its compile-time constants.

    Attributes:
        file: its source, in this folder; the kernel bears the file's name.
        constants: macros.
        widths: the N of the ``wgmma`` that it uses.
        dtype: fp16 or bf16.
        headers: files of this folder that stand before it.
    """

    file: str
    constants: tuple[tuple[str, int], ...]
    widths: tuple[int, ...]
    dtype: torch.dtype
    headers: tuple[str, ...] = ()

    @property
    def function_name(self) -> str:
        return Path(self.file).stem

    @cached_property
    def source(self) -> str:
        primitives = (FOLDER / "primitives.cuh").read_text()
        parts = [f"#define {name} {value}\n" for name, value in self.constants]
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
        _, nvrtc = _bindings()
        version = nvrtc.nvrtcVersion()[1:]
        key = hashlib.sha256(f"{version}\n{ARCHITECTURE}\n{self.source}".encode()).hexdigest()
        path = cache_folder() / f"{self.function_name}-{key[:32]}.cubin"
        if path.is_file():
            return path.read_bytes()
        code = self.compile()
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(code)
        except SamtrtError as error:
            logger.warning(
                "kernels are compiled anew at each start, since their cache cannot be written; set "
                "%s to a folder that can (%s)",
                CACHE_VARIABLE,
                error,
            )
        return code

    def compile(self) -> bytes:
        """The cubin, compiled anew."""
        _, nvrtc = _bindings()
        program = checked(
            nvrtc.nvrtcCreateProgram(self.source.encode(), self.file.encode(), 0, [], []),
            "nvrtcCreateProgram",
        )
        options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17", b"-lineinfo"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program), "log size")
            nvrtc.nvrtcGetProgramLog(program, log)
            errors = [line for line in log.decode().splitlines() if "error" in line]
            raise EngineError(f"NVRTC refuses {self.file}: {'; '.join(errors[:3])}")
        code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize")
        checked(nvrtc.nvrtcGetCUBIN(program, code), "nvrtcGetCUBIN")
        nvrtc.nvrtcDestroyProgram(program)
        return code


@cache
def _function(program: Program, device: int, shared_bytes: int) -> Any:
    driver, _ = _bindings()
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # makes torch's context the current one
        module = checked(driver.cuModuleLoadData(program.machine_code()), "cuModuleLoadData")
        name = program.function_name.encode()
        function = checked(driver.cuModuleGetFunction(module, name), "cuModuleGetFunction")
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        checked(driver.cuFuncSetAttribute(function, attribute, shared_bytes), "shared memory")
    return function


def launch(
    program: Program,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    arguments: list[Any],
) -> None:
    """Launches on torch's current stream.

    The kernel may start before its predecessors on the stream have finished: it must call
    ``dependency_wait`` before it reads or writes what they do.

    Args:
        arguments: tensors, ``TensorMap`` objects, ints (32 bits), floats and ctypes structures, in
            the kernel's order.

    Raises:
        EngineError: NVRTC or the driver refuses.
    """
    driver, _ = _bindings()
    device = torch.cuda.current_device()
    function = _function(program, device, shared_bytes)
    dependent = driver.CUlaunchAttribute()
    identifiers = driver.CUlaunchAttributeID
    dependent.id = identifiers.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    dependent.value.programmaticStreamSerializationAllowed = 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    config.attrs = [dependent]
    config.numAttrs = 1
    config.hStream = torch.cuda.current_stream().cuda_stream
    values = [_value(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    result = driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0)
    checked(result, f"launch of {program.function_name}")


def _value(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, TensorMap):
        return argument.value
    if isinstance(argument, ctypes.Structure):
        return argument
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_int32(argument)


class TensorMap:
    """How the copy engine reads or writes boxes of a tensor of 16-bit elements (CUtensorMap)."""

    def __init__(
        self,
        tensor: Tensor,
        sizes: tuple[int, ...],
        strides: tuple[int, ...],
        box: tuple[int, ...],
    ) -> None:
        """
        Args:
            tensor: fp16 or bf16, on the GPU.
            sizes: of its dimensions, the contiguous one first; elements beyond read as zero and
                are not written.
            strides: of all dimensions but the first, in elements, multiples of 8.
            box: elements a copy moves along each dimension. The first is the swizzle: 16, 32 or
                64 elements, rows of 32, 64 or 128 bytes.

        Raises:
            EngineError: the driver refuses (a misaligned address or stride, for example).
        """
        driver, _ = _bindings()
        rank = len(sizes)
        types = driver.CUtensorMapDataType
        swizzles = driver.CUtensorMapSwizzle
        swizzle = {
            64: swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
            32: swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
            16: swizzles.CU_TENSOR_MAP_SWIZZLE_32B,
        }[box[0]]
        is_half = tensor.dtype == torch.float16
        encoded = checked(
            driver.cuTensorMapEncodeTiled(
                types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                if is_half
                else types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                rank,
                tensor.data_ptr(),
                [driver.cuuint64_t(size) for size in sizes],
                [driver.cuuint64_t(2 * stride) for stride in strides],
                [driver.cuuint32_t(extent) for extent in box],
                [driver.cuuint32_t(1)] * rank,
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
            "cuTensorMapEncodeTiled",
        )
        raw = ctypes.string_at(encoded.getPtr(), 128)
        self.value = (ctypes.c_uint8 * 128).from_buffer_copy(raw)


def matrix_map(matrix: Tensor, rows: int, columns: int) -> TensorMap:
    """A row-major [M, N] matrix in boxes of ``rows`` × ``columns``."""
    m, n = matrix.shape
    return TensorMap(matrix, (n, m), (matrix.stride(0),), (columns, rows))

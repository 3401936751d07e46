"""Launches compiled kernels through the driver, and describes tensors to the copy engine."""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.hopper.compiler import Program, bindings, checked

_loading = threading.Lock()


def _function(program: Program, device: int, shared_bytes: int) -> Any:
    with _loading:  # else threads compile and load the same program several times
        return _loaded(program, device, shared_bytes)


@cache
def _loaded(program: Program, device: int, shared_bytes: int) -> Any:
    """The kernel in the context of a GPU, which is the current one."""
    driver, _ = bindings()
    torch.cuda.current_stream().synchronize()  # makes torch's context the current one
    code = program.machine_code()
    try:
        module = checked(driver.cuModuleLoadData(code), "cuModuleLoadData")
    except EngineError:
        # Sound when it was kept, but not for this driver: what NVRTC makes now has a last word.
        code = program.compile_and_keep()
        module = checked(driver.cuModuleLoadData(code), "cuModuleLoadData")
    name = program.function_name.encode()
    function = checked(driver.cuModuleGetFunction(module, name), "cuModuleGetFunction")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(driver.cuFuncSetAttribute(function, attribute, shared_bytes), "shared memory")
    return function


@dataclass(frozen=True)
class Launch:
    """What is launched, and how: nothing of it needs a GPU until it is run.

    Attributes:
        program: the kernel.
        grid: blocks along x, y, z.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        arguments: tensors, ``TensorMap`` objects, ints (32 bits), floats (fp32) and ``Struct``
            objects, in the kernel's order.
    """

    program: Program
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: tuple[Any, ...]


def launch(work: Launch, device: torch.device) -> None:
    """Launches on a GPU, on torch's current stream of it, whichever GPU is the current one.

    The kernel may start before its predecessors on the stream have finished: it must call
    ``dependency_wait`` before it reads or writes what they do.

    Args:
        device: the GPU, with its index, that the arguments are on.

    Raises:
        EngineError: NVRTC or the driver refuses.
    """
    driver, _ = bindings()
    dependent = driver.CUlaunchAttribute()
    identifiers = driver.CUlaunchAttributeID
    dependent.id = identifiers.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    dependent.value.programmaticStreamSerializationAllowed = 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = work.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = work.threads, 1, 1
    config.sharedMemBytes = work.shared_bytes
    config.attrs = [dependent]
    config.numAttrs = 1
    config.hStream = torch.cuda.current_stream(device).cuda_stream
    contents = [_content(argument) for argument in work.arguments]
    values = [(ctypes.c_uint8 * len(content)).from_buffer_copy(content) for content in contents]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    with torch.cuda.device(device):
        function = _function(work.program, device.index, work.shared_bytes)
        result = driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0)
    checked(result, f"launch of {work.program.function_name}")


def _content(argument: Any) -> bytes:
    """An argument's bytes, as the kernel takes them."""
    if isinstance(argument, Tensor):
        return bytes(ctypes.c_void_p(argument.data_ptr()))
    if isinstance(argument, TensorMap):
        return argument.encoded()
    if isinstance(argument, Struct):
        return b"".join(map(_content, argument.members)).ljust(argument.size, b"\0")
    if isinstance(argument, float):
        return bytes(ctypes.c_float(argument))
    return bytes(ctypes.c_int32(argument))


@dataclass(frozen=True)
class Struct:
    """A C structure that a kernel takes by value.

    Attributes:
        members: as the arguments of a ``Launch``; they stand without gaps.
        size: of the structure in bytes, with what stands after the last member.
    """

    members: tuple[Any, ...]
    size: int


@dataclass(frozen=True)
class TensorMap:
    """How the copy engine reads or writes boxes of a tensor (CUtensorMap).

    Attributes:
        tensor: fp16, bf16 or e4m3.
        sizes: of its dimensions, the contiguous one first; elements beyond read as zero and are
            not written.
        strides: of all dimensions but the first, in elements, multiples of 16 bytes.
        box: elements a copy moves along each dimension. The first is the swizzle: rows of 32, 64
            or 128 bytes.
    """

    tensor: Tensor
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]

    def encoded(self) -> bytes:
        """The descriptor, 128 bytes; the tensor is on the GPU.

        Raises:
            EngineError: the driver refuses (a misaligned address or stride, for example).
        """
        driver, _ = bindings()
        rank = len(self.sizes)
        types = driver.CUtensorMapDataType
        swizzles = driver.CUtensorMapSwizzle
        swizzle = {
            128: swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
            64: swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
            32: swizzles.CU_TENSOR_MAP_SWIZZLE_32B,
        }[self.box[0] * self.tensor.element_size()]
        element = {
            torch.float16: types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            torch.bfloat16: types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            torch.float8_e4m3fn: types.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        }[self.tensor.dtype]
        size = self.tensor.element_size()
        encoded = checked(
            driver.cuTensorMapEncodeTiled(
                element,
                rank,
                self.tensor.data_ptr(),
                [driver.cuuint64_t(extent) for extent in self.sizes],
                [driver.cuuint64_t(size * stride) for stride in self.strides],
                [driver.cuuint32_t(extent) for extent in self.box],
                [driver.cuuint32_t(1)] * rank,
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
            "cuTensorMapEncodeTiled",
        )
        return ctypes.string_at(encoded.getPtr(), 128)


def matrix_map(matrix: Tensor, rows: int, columns: int) -> TensorMap:
    """A row-major [M, N] matrix in boxes of ``rows`` × ``columns``."""
    m, n = matrix.shape
    return TensorMap(matrix, (n, m), (matrix.stride(0),), (columns, rows))

"""Launches compiled kernels through the driver, and describes tensors to the copy engine."""

import ctypes
import threading
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


def launch(
    program: Program,
    device: torch.device,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    arguments: list[Any],
) -> None:
    """Launches on a GPU, on torch's current stream of it, whichever GPU is the current one.

    The kernel may start before its predecessors on the stream have finished: it must call
    ``dependency_wait`` before it reads or writes what they do.

    Args:
        device: the GPU, with its index, that the arguments are on.
        arguments: tensors, ``TensorMap`` objects, ints (32 bits), floats and ctypes structures, in
            the kernel's order.

    Raises:
        EngineError: NVRTC or the driver refuses.
    """
    driver, _ = bindings()
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
    config.hStream = torch.cuda.current_stream(device).cuda_stream
    values = [_value(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    with torch.cuda.device(device):
        function = _function(program, device.index, shared_bytes)
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
        driver, _ = bindings()
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

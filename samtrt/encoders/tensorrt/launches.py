"""Launches of our kernels written down, as the plugin (``plugins/layer.h``) replays them.

Nothing is decided there: a layer brings, for each batch size, what ``samtrt.kernels.hopper`` would
launch for torch, with the places of its inputs, outputs and constants in the place of addresses.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.hopper.launch import Launch, Struct, TensorMap

VERSION = 1  # layer.cpp
INPUT, OUTPUT, CONSTANT, WORKSPACE = range(4)  # layer.h, Source
_BYTES, _ADDRESS, _MAP = range(3)  # layer.h, Piece
_TYPES = {torch.float32: 0, torch.float16: 1}  # layer.h, Output


@dataclass(frozen=True)
class Batched:
    """An output of a layer: its shape behind the batch, and its type (float16 or float32)."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class PluginLayer:
    """A layer of the plugin.

    Attributes:
        outputs: what it gives.
        description: what ``plugins/layer.h`` reads: types and shapes, and all launches.
        codes: the machine code that is launched.
        constants: what the kernels read beside their inputs, on the CPU, contiguous.
    """

    outputs: tuple[Batched, ...]
    description: bytes
    codes: tuple[bytes, ...]
    constants: tuple[Tensor, ...]


@dataclass(frozen=True)
class AotLayer:
    """A layer of NVIDIA's ahead-of-time Python plugins: one kernel, which the engine will hold.

    Attributes:
        plugin: its name.
        outputs: what it gives.
        launch: ``function``, ``grid`` (the last axis for one picture), ``threads``,
            ``shared_bytes``, and ``sizes``: 32-bit numbers between its inputs and its outputs.
        ptx: the kernel.
    """

    plugin: str
    outputs: tuple[Batched, ...]
    launch: dict[str, Any]
    ptx: bytes


@dataclass(frozen=True)
class Operands:
    """What a layer's launch for one batch size reads and writes.

    But for the constants they have no memory (device ``meta``): their shapes are what counts.

    Attributes:
        workspace: one tensor that is written and that nobody reads, or none.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    workspace: tuple[Tensor, ...] = ()


def plugin_layer(
    inputs: Sequence[torch.dtype],
    outputs: Sequence[Batched],
    max_batch_size: int,
    launch_of: Callable[[int], tuple[Launch, Operands]],
) -> PluginLayer:
    """A layer for 1…max_batch_size pictures.

    Args:
        inputs: types of its inputs; the first axis of the first is the batch.
        launch_of: the launch for a batch size. A constant that several launches read is one object.

    Raises:
        EngineError: NVRTC is missing, or a type is not the plugin's.
    """
    codes: dict[Any, int] = {}
    constants: list[Tensor] = []
    launches = []
    workspace = 0
    for batch in range(1, max_batch_size + 1):
        launch, operands = launch_of(batch)
        for constant in operands.constants:
            if all(constant is not known for known in constants):
                constants.append(constant)
        places = [
            (tensor, source, index)
            for source, tensors in (
                (INPUT, operands.inputs),
                (OUTPUT, operands.outputs),
                (CONSTANT, constants),
                (WORKSPACE, operands.workspace),
            )
            for index, tensor in enumerate(tensors)
        ]
        workspace = max(workspace, sum(each.nbytes for each in operands.workspace))
        code = codes.setdefault(launch.program, len(codes))
        launches.append(_numbers(code, *launch.grid, launch.threads, launch.shared_bytes))
        launches.append(_counted([_argument(each, places) for each in launch.arguments]))
    images = tuple(program.machine_code() for program in codes)
    named = [
        _text(program.function_name) + hashlib.sha256(image).digest()
        for program, image in zip(codes, images, strict=True)
    ]
    description = b"".join(
        (
            _numbers(VERSION),
            _counted([_numbers(_type(dtype)) for dtype in inputs]),
            _counted([_numbers(_type(each.dtype)) + _list("i", each.shape) for each in outputs]),
            _numbers(len(codes), len(constants)) + struct.pack("<Q", workspace),
            *named,
            _numbers(max_batch_size),
            *launches,
        )
    )
    return PluginLayer(tuple(outputs), description, images, tuple(constants))


def _argument(argument: Any, places: list[tuple[Tensor, int, int]]) -> bytes:
    members = argument.members if isinstance(argument, Struct) else (argument,)
    pieces = [_piece(member, places) for member in members]
    if isinstance(argument, Struct):
        rest = argument.size - sum(map(_size, members))
        pieces.append(_numbers(_BYTES, rest) + bytes(rest))
    return _counted(pieces)


def _piece(value: Any, places: list[tuple[Tensor, int, int]]) -> bytes:
    """An argument, or a member of one; layer.h, Piece."""
    if isinstance(value, Tensor):
        return _numbers(_ADDRESS, *_place(value, places))
    if isinstance(value, TensorMap):
        return (
            _numbers(_MAP, *_place(value.tensor, places))
            + _list("Q", value.sizes)
            + _list("Q", [value.tensor.element_size() * stride for stride in value.strides])
            + _list("I", value.box)
        )
    return _numbers(_BYTES, 4) + struct.pack("<f" if isinstance(value, float) else "<i", value)


def _size(value: Any) -> int:
    """Bytes of a member."""
    return 8 if isinstance(value, Tensor) else 128 if isinstance(value, TensorMap) else 4


def _place(tensor: Tensor, places: list[tuple[Tensor, int, int]]) -> tuple[int, int]:
    for known, source, index in places:
        if known is tensor:
            return source, index
    raise AssertionError("a launch reads or writes what is no operand of the layer")


def _type(dtype: torch.dtype) -> int:
    if dtype not in _TYPES:
        raise EngineError(f"the plugins compute in fp16, not in {dtype}; choose --precision fp16")
    return _TYPES[dtype]


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _list(kind: str, values: Sequence[int]) -> bytes:
    return _numbers(len(values)) + struct.pack(f"<{len(values)}{kind}", *values)


def _counted(parts: Sequence[bytes]) -> bytes:
    return _numbers(len(parts)) + b"".join(parts)


def _text(value: str) -> bytes:
    return _numbers(len(value.encode())) + value.encode()

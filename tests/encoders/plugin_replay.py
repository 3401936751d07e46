"""Evaluates a recorded network in torch, layers of the plugin by what their description says.

The kernels' arithmetic is that of ``hopper_stand_ins``; which tensor is read or written where, and
how large, is read from the bytes that ``plugins/layer.cpp`` reads. Programs are known by
``told_apart``, which puts a program's constants in the place of its machine code.
"""

import json
import math
import struct
from typing import Any

import hopper_stand_ins
import torch
import torch.nn.functional as F

from samtrt.encoders.tensorrt.launches import CONSTANT, INPUT, OUTPUT, WORKSPACE
from samtrt.encoders.tensorrt.recording import RecordedLayer, Recording
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.linear import GELU, NORMALISED_GELU, RESIDUAL, Linear

Value = torch.Tensor


def told_apart(program: Program) -> bytes:
    """For ``Program.machine_code``."""
    constants = {name: value for name, value in program.constants if name not in GELU}
    return json.dumps([program.function_name, constants]).encode()


class Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def read(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.content, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def list(self, kind: str) -> list[Any]:
        return [self.read(kind) for _ in range(self.read("I"))]

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.content[self.at - count : self.at]

    def piece(self) -> Any:
        kind = self.read("I")
        if kind == 0:
            return self.bytes(self.read("I"))
        place = (self.read("I"), self.read("I"))
        if kind == 1:
            return place
        return place, self.list("Q"), self.list("Q"), self.list("I")


class Description:
    """What ``Layer`` of ``plugins/layer.cpp`` reads."""

    def __init__(self, content: bytes) -> None:
        reader = Reader(content)
        assert reader.read("I") == 1
        types = {0: torch.float32, 1: torch.float16}
        self.inputs = [types[number] for number in reader.list("I")]
        self.outputs = [
            (types[reader.read("I")], reader.list("i")) for _ in range(reader.read("I"))
        ]
        codes, self.constants = reader.read("I"), reader.read("I")
        self.workspace = reader.read("Q")
        self.codes = [
            (reader.bytes(reader.read("I")).decode(), reader.bytes(32)) for _ in range(codes)
        ]
        self.launches = []
        for _ in range(reader.read("I")):
            numbers = [reader.read("I") for _ in range(6)]
            arguments = [
                [reader.piece() for _ in range(reader.read("I"))] for _ in range(reader.read("I"))
            ]
            self.launches.append((numbers, arguments))
        assert reader.at == len(content)


def evaluate(recording: Recording, inputs: dict[str, Value]) -> dict[str, Value]:
    """The network's outputs by name."""
    values = dict(inputs)
    for layer in recording.layers:
        given = [values[tensor.name] for tensor in layer.inputs]
        if layer.kind == "plugin":
            made = _replayed(recording, layer, given)
        elif layer.kind == "aot_plugin":
            made = _launched(recording, layer, given)
        else:
            made = [_OPS[layer.kind](recording, layer, *given)]
        for tensor, value in zip((layer.output, *layer.further), made, strict=True):
            assert value.dtype == tensor.dtype
            assert tuple(value.shape[1:]) == tensor.shape[1:], tensor
            values[tensor.name] = value
    return {name: values[tensor.name] for name, tensor in recording.outputs.items()}


def _replayed(recording: Recording, layer: RecordedLayer, inputs: list[Value]) -> list[Value]:
    fields = [recording.weights[name] for name in layer.settings["fields"]]
    description = Description(fields[0].numpy().tobytes())
    assert [value.dtype for value in inputs] == description.inputs
    batch = len(inputs[0])
    (code, *grid_and_sizes), arguments = description.launches[batch - 1]
    assert min(grid_and_sizes) > 0
    codes, constants = fields[1 : 1 + len(description.codes)], fields[1 + len(description.codes) :]
    assert len(constants) == description.constants
    outputs = [
        torch.full((batch, *shape), float("nan"), dtype=dtype)
        for dtype, shape in description.outputs
    ]
    workspace = torch.empty(description.workspace // 4)
    tensors = {INPUT: inputs, OUTPUT: outputs, CONSTANT: constants, WORKSPACE: [workspace]}

    def at(place: tuple[int, int]) -> Value:
        return tensors[place[0]][place[1]]

    function, settings = json.loads(codes[code].numpy().tobytes())
    assert function == description.codes[code][0]
    _FUNCTIONS[function](arguments, settings, at)
    return outputs


def not_compiled(launch: Any, tensors: dict[str, str]) -> Any:
    """For ``ahead_of_time.compiled``: what would be compiled in, in the place of PTX."""
    from samtrt.kernels.triton.ahead_of_time import Ptx

    fixed = json.dumps({**launch.numbers, **launch.constants})
    return Ptx(launch.kernel.__name__, fixed, 32 * launch.num_warps, 0)


def _launched(recording: Recording, layer: RecordedLayer, inputs: list[Value]) -> list[Value]:
    """An ahead-of-time plugin: the kernel itself, given what TensorRT would pass, in its order."""
    import triton_kernels  # before the kernels: it chooses Triton's interpreter

    from samtrt.kernels.triton import global_attention, window_attention

    settings = layer.settings["launch"]
    name, fixed = settings["function"], recording.weights[layer.settings["ptx"]]
    kernel = getattr(window_attention if "window" in name else global_attention, name)
    constants = json.loads(fixed.numpy().tobytes())
    device, batch = triton_kernels.DEVICE, len(inputs[0])
    outputs = [
        torch.full((batch, *tensor.shape[1:]), float("nan"), dtype=tensor.dtype, device=device)
        for tensor in (layer.output, *layer.further)
    ]
    given = [*(x.contiguous().to(device) for x in inputs), *settings["sizes"], *outputs]
    taken = [parameter for parameter in kernel.arg_names if parameter not in constants]
    x, y, z_of_one = settings["grid"]
    warps = {"num_warps": settings["threads"] // 32}
    kernel[(x, y, z_of_one * batch)](**dict(zip(taken, given, strict=True)), **constants, **warps)
    return [output.cpu() for output in outputs]


def _number(piece: bytes, kind: str = "i") -> Any:
    (value,) = struct.unpack("<" + kind, piece)
    return value


def _matrix(piece: Any, at: Any) -> Value:
    """The operand that a map is of, as [M, N]: its first elements, since some have more."""
    place, (columns, rows), (stride,), _ = piece
    tensor = at(place)
    assert stride == columns * 2
    assert tensor.numel() == rows * columns and tensor.is_contiguous()
    return tensor.view(rows, columns)


def _linear(arguments: Any, settings: dict[str, int], at: Any) -> None:
    ((a, weight, out, out_tail, residual, residual_tail, *pointers_and_numbers),) = arguments
    bias, weight_scale, statistics, quantised, quantised_scale, *numbers = pointers_and_numbers
    # (of what is not e4m3 there are no scales; something stands in their places)
    assert weight_scale == quantised_scale == bias and quantised == out[0]
    assert not settings["FP8_OPERANDS"] and not settings["FP8_OUTPUT"]
    residual_rows, rows, columns, inner, _, _, _ = map(_number, numbers[:7])
    assert out[:3] == out_tail[:3] and residual[:3] == residual_tail[:3]
    epilogue = settings["EPILOGUE"]
    parts = columns // settings["BLOCK_N"] if epilogue == RESIDUAL else settings["STATISTICS"]
    matrices = [_matrix(piece, at) for piece in (a, weight, out)]
    assert [len(m) for m in matrices] == [rows, columns, rows] and matrices[0].shape[1] == inner
    added = _matrix(residual, at) if epilogue == RESIDUAL else None
    assert added is None or len(added) == residual_rows
    first = at(statistics).view(-1)[: parts * rows * 2].view(parts, rows, 2)
    x, w, y = matrices
    hopper_stand_ins.linear_layer(
        Linear(
            x, w, at(bias), y, first, added, epilogue == NORMALISED_GELU, _number(numbers[7], "f")
        )
    )


def _only(argument: list[Any]) -> Any:
    (piece,) = argument
    return piece


def _window(arguments: Any, settings: dict[str, int], at: Any) -> None:
    pieces = list(map(_only, arguments))
    maps, (bias, table, schedule), numbers = pieces[:8], pieces[8:11], pieces[11:]
    units, height, width, heads = map(_number, numbers[:4])
    assert len({place for place, *_ in maps[:4]}) == len({place for place, *_ in maps[4:]}) == 1
    qkv, out = at(maps[0][0]), at(maps[4][0])
    assert qkv.shape[1:3] == (height, width) and at(schedule).shape[1] == units
    units = [tuple(unit) for unit in at(schedule).view(-1, 4).tolist() if unit[3] >= 0]
    window = settings["WINDOW"]
    windows = math.ceil(height / window) * math.ceil(width / window)
    assert len(set(units)) == len(units) == len(qkv) * windows * heads
    scale = settings["HEAD_DIM"] ** -0.5 * math.log2(math.e)
    assert _number(numbers[4], "f") == struct.unpack("<f", struct.pack("<f", scale))[0]
    hopper_stand_ins.window_attention(qkv, at(bias), at(table), at(schedule), out, window, heads)


def _global(arguments: Any, settings: dict[str, int], at: Any) -> None:
    pieces = list(map(_only, arguments))
    main, tail, values, h, h_tail, w, w_tail, out = pieces[:8]
    _, _, _, height, width, heads = map(_number, pieces[8:14])
    assert main[0] == tail[0] == values[0] and (h[0], w[0]) == (h_tail[0], w_tail[0])
    qkv = at(main[0])
    assert qkv.shape[1:3] == (height, width)
    hopper_stand_ins.global_attention(qkv, _matrix(h, at), _matrix(w, at), at(out), heads)


_FUNCTIONS = {"linear": _linear, "window_attention": _window, "global_attention": _global}


def _constant(recording: Recording, layer: RecordedLayer) -> Value:
    return recording.weights[layer.settings["weights"]].view(layer.output.shape)


def _conv2d(recording: Recording, layer: RecordedLayer, x: Value) -> Value:
    settings = layer.settings
    weight, bias = (
        settings[key] and recording.weights[settings[key]] for key in ("weight", "bias")
    )
    return F.conv2d(x, weight, bias, settings["stride"], settings["padding"])


def _rows_linear(recording: Recording, layer: RecordedLayer, x: Value) -> Value:
    weight, bias = (
        layer.settings[key] and recording.weights[layer.settings[key]] for key in ("weight", "bias")
    )
    return F.linear(x, weight, bias)


def _layer_norm(
    recording: Recording, layer: RecordedLayer, x: Value, weight: Value, bias: Value
) -> Value:
    axis, eps = layer.settings["axis"], layer.settings["eps"]
    mean = x.mean(axis, keepdim=True)
    return (x - mean) / (x.var(axis, correction=0, keepdim=True) + eps).sqrt() * weight + bias


_OPS: dict[str, Any] = {
    "constant": _constant,
    "conv2d": _conv2d,
    "linear": _rows_linear,
    "layer_norm": _layer_norm,
    "cast": lambda _, layer, x: x.to(layer.output.dtype),
    "view": lambda _, layer, x: x.reshape(layer.settings["sizes"]),
    "permute": lambda _, layer, x: x.permute(layer.settings["axes"]),
    "add": lambda _, layer, x, y: x + y,
    "gelu": lambda _, layer, x: F.gelu(x),
    "matmul": lambda _, layer, x, y: x @ (y.mT if layer.settings["transpose_y"] else y),
    "concat": lambda _, layer, *xs: torch.cat(xs, layer.settings["axis"]),
}

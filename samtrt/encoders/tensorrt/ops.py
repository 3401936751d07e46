"""The op vocabulary as layers of the active ``Recording``.

Contracts, shapes and checks are in ``samtrt.modeling.functional``; nothing else calls this
module. A layer's type is that of its inputs, so every change of precision is a cast that stands
here. What each kind of layer is in TensorRT is written in
``samtrt.encoders.tensorrt.standalone``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from samtrt.encoders.tensorrt.attention import rel_pos_attention as rel_pos_attention
from samtrt.encoders.tensorrt.recording import RecordedTensor as Tensor
from samtrt.encoders.tensorrt.recording import Recording
from samtrt.modeling.network import active_network


def constant(value: torch.Tensor, rank: int | None, name: str) -> Tensor:
    shape = (1,) * ((rank or value.ndim) - value.ndim) + tuple(value.shape)
    return _constant(name, value, shape)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.dtype == dtype:
        return x
    return _recording().add("cast", [x], x.shape, dtype)


def view(x: Tensor, shape: Sequence[int]) -> Tensor:
    return _like(x, "view", _resolved(x.shape, shape), sizes=list(shape))


def permute(x: Tensor, axes: Sequence[int]) -> Tensor:
    return _like(x, "permute", [x.shape[axis] for axis in axes], axes=list(axes))


def pad(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    shape = [
        extent if extent == -1 else low + extent + high
        for extent, low, high in zip(x.shape, before, after, strict=True)
    ]
    return _like(x, "pad", shape, before=list(before), after=list(after))


def slice(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    shape = []
    for first, length, extent in zip(start, size, x.shape, strict=True):
        if extent == -1 and length != -1:
            raise ValueError(f"slice: the dynamic axis of {x.shape} is cut only at its end")
        shape.append(length if length != -1 else extent if extent == -1 else extent - first)
    return _like(x, "slice", shape, start=list(start), size=list(size))


def concat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    first = tensors[0]
    shape = list(first.shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return _recording().add("concat", list(tensors), shape, first.dtype, axis=axis)


def add(x: Tensor, y: Tensor) -> Tensor:
    return _recording().add("add", [x, y], _broadcast(x.shape, y.shape), x.dtype)


def mul(x: Tensor, y: Tensor | float) -> Tensor:
    if isinstance(y, float):
        value = torch.tensor(y, dtype=x.dtype, device="cpu")
        y = _constant("constant", value, (1,) * len(x.shape))
    return _recording().add("mul", [x, y], _broadcast(x.shape, y.shape), x.dtype)


def matmul(x: Tensor, y: Tensor, transpose_y: bool) -> Tensor:
    columns = y.shape[-2 if transpose_y else -1]
    shape = (*_broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], columns)
    return _recording().add("matmul", [x, y], shape, x.dtype, transpose_y=transpose_y)


def conv2d(
    x: Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int
) -> Tensor:
    # In float32, whatever the network's type: a convolution in fp16 may add up in fp16, and there
    # are two or three of them. With TF32 its operands are exact, and so are their products.
    out_channels, _, *kernel = weight.shape
    sides = [
        (side + 2 * padding - length) // stride + 1
        for side, length in zip(x.shape[2:], kernel, strict=True)
    ]
    y = _like(
        cast(x, torch.float32),
        "conv2d",
        (x.shape[0], out_channels, *sides),
        weight=_recording().keep("weight", weight.float()),
        bias=None if bias is None else _recording().keep("bias", bias.float()),
        kernel=list(kernel),
        stride=stride,
        padding=padding,
    )
    return cast(y, x.dtype)


def layer_norm(
    x: Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, axis: int
) -> Tensor:
    axis %= len(x.shape)
    shape = [x.shape[axis] if index == axis else 1 for index in range(len(x.shape))]
    inputs = [
        cast(x, torch.float32),
        _constant("weight", weight, shape),
        _constant("bias", bias, shape),
    ]
    y = _recording().add("layer_norm", inputs, x.shape, torch.float32, eps=eps, axis=axis)
    return cast(y, x.dtype)


def linear(x: Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Tensor:
    # Of rows: over leading axes TensorRT multiplies batch by batch, or looks for kernels that do.
    y = _recording().add(
        "linear",
        [view(x, (-1, x.shape[-1]))],
        (_resolved(x.shape, (-1, x.shape[-1]))[0], len(weight)),
        x.dtype,
        weight=_recording().keep("weight", weight),
        bias=None if bias is None else _recording().keep("bias", bias),
    )
    return view(y, (*x.shape[:-1], len(weight)))


def softmax(x: Tensor) -> Tensor:
    return cast(_like(cast(x, torch.float32), "softmax", x.shape), x.dtype)


def gelu(x: Tensor) -> Tensor:
    return _like(x, "gelu", x.shape)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return _recording().add("attention", [q, k, v, bias], q.shape, q.dtype)


def _recording() -> Recording:
    network = active_network()
    # samtrt.modeling.functional dispatches here only inside net_guard of a recording.
    assert isinstance(network, Recording)
    return network


def _like(x: Tensor, kind: str, shape: Sequence[int], **settings: Any) -> Tensor:
    """A layer of one input, whose output has that input's type."""
    return _recording().add(kind, [x], shape, x.dtype, **settings)


def _constant(name: str, value: torch.Tensor, shape: Sequence[int]) -> Tensor:
    weights = _recording().keep(name, value)
    return _recording().add("constant", [], shape, value.dtype, name=name, weights=weights)


def _broadcast(xs: Sequence[int], ys: Sequence[int]) -> list[int]:
    return [y if x == 1 else x for x, y in zip(xs, ys, strict=True)]


def _resolved(shape: Sequence[int], target: Sequence[int]) -> list[int]:
    """The shape of a view; −1 stays only for an axis that goes with the batch."""
    known = math.prod(size for size in target if size != -1)
    elements = math.prod(extent for extent in shape if extent != -1)
    if -1 in shape:  # the batch is folded into another axis, or unfolded
        fits = -1 in target and (elements % known == 0 or known % elements == 0)
    else:
        fits = elements % known == 0 if -1 in target else elements == known
    if not fits:
        raise ValueError(f"view: {tuple(shape)} as {tuple(target)}")
    if -1 in shape:
        return list(target)
    return [elements // known if size == -1 else size for size in target]

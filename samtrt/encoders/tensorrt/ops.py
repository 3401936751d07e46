"""The op vocabulary as layers of the active TensorRT network, which is strongly typed.

Contracts, shapes and checks are in ``samtrt.modeling.functional``; nothing else calls this
module. A layer takes the type of its inputs, so every change of precision is a cast that stands
here.
"""

from collections.abc import Sequence
from typing import Any

import torch

from samtrt.encoders.tensorrt.network import Network
from samtrt.errors import EngineError
from samtrt.modeling.network import active_network

Tensor = Any  # tensorrt.ITensor
_DATA_TYPES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
}


def constant(value: torch.Tensor, rank: int | None, name: str) -> Tensor:
    shape = (1,) * ((rank or value.ndim) - value.ndim) + tuple(value.shape)
    return _constant(name, value, shape)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    target = _data_type(dtype)
    if x.dtype == target:
        return x
    return _add("cast", _definition().add_cast(x, target)).get_output(0)


def view(x: Tensor, shape: Sequence[int]) -> Tensor:
    layer = _add("view", _definition().add_shuffle(x))
    layer.reshape_dims = tuple(shape)
    return layer.get_output(0)


def permute(x: Tensor, axes: Sequence[int]) -> Tensor:
    layer = _add("permute", _definition().add_shuffle(x))
    layer.first_transpose = tuple(axes)
    return layer.get_output(0)


def pad(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    grown = [low + high for low, high in zip(before, after, strict=True)]
    layer = _slice("pad", x, [-low for low in before], grown)
    layer.mode = _network().trt.SampleMode.FILL
    layer.set_input(4, _scalar(0.0, x, rank=0))
    return layer.get_output(0)


def slice(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    grown = []
    for first, length, extent in zip(start, size, x.shape, strict=True):
        if extent == -1 and length != -1:
            raise ValueError(f"slice: the dynamic axis of {tuple(x.shape)} is cut only at its end")
        grown.append(-first if length == -1 else length - extent)
    return _slice("slice", x, start, grown).get_output(0)


def add(x: Tensor, y: Tensor) -> Tensor:
    operation = _network().trt.ElementWiseOperation.SUM
    return _add("add", _definition().add_elementwise(x, y, operation)).get_output(0)


def mul(x: Tensor, y: Tensor | float) -> Tensor:
    if isinstance(y, float):
        y = _scalar(y, x, rank=len(x.shape))
    operation = _network().trt.ElementWiseOperation.PROD
    return _add("mul", _definition().add_elementwise(x, y, operation)).get_output(0)


def matmul(x: Tensor, y: Tensor, transpose_y: bool) -> Tensor:
    operation = _network().trt.MatrixOperation
    y_operation = operation.TRANSPOSE if transpose_y else operation.NONE
    layer = _definition().add_matrix_multiply(x, operation.NONE, y, y_operation)
    return _add("matmul", layer).get_output(0)


def conv2d(
    x: Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int
) -> Tensor:
    out_channels, _, *kernel_size = weight.shape
    layer = _add(
        "conv2d",
        _definition().add_convolution_nd(
            x,
            out_channels,
            tuple(kernel_size),
            _weights(weight),
            None if bias is None else _weights(bias),
        ),
    )
    layer.stride_nd = (stride, stride)
    layer.padding_nd = (padding, padding)
    return layer.get_output(0)


def layer_norm(
    x: Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, axis: int
) -> Tensor:
    definition = _definition()
    rank = len(x.shape)
    axis %= rank
    shape = [x.shape[axis] if index == axis else 1 for index in range(rank)]
    is_v2 = hasattr(definition, "add_normalization_v2")  # since TensorRT 10.15
    layer = (definition.add_normalization_v2 if is_v2 else definition.add_normalization)(
        cast(x, torch.float32),
        _constant("weight", weight, shape),
        _constant("bias", bias, shape),
        1 << axis,
    )
    _add("layer_norm", layer).epsilon = eps
    return cast(layer.get_output(0), _torch_dtype(x))


def softmax(x: Tensor) -> Tensor:
    layer = _add("softmax", _definition().add_softmax(cast(x, torch.float32)))
    layer.axes = 1 << (len(x.shape) - 1)
    return cast(layer.get_output(0), _torch_dtype(x))


def gelu(x: Tensor) -> Tensor:
    kind = _network().trt.ActivationType.GELU_ERF
    return _add("gelu", _definition().add_activation(x, kind)).get_output(0)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    trt, definition = _network().trt, _definition()
    if hasattr(definition, "add_attention_v2"):
        layer = definition.add_attention_v2(
            q, k, v, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        )
    elif hasattr(definition, "add_attention"):  # TensorRT 10.14 and 10.15
        layer = definition.add_attention(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, False)
    else:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} has no fused attention layer; expected 10.14 or "
            "later, or choose --attention plain"
        )
    _add("attention", layer).mask = bias
    # A GPU may have no fused kernel for this head size and mask; it may then take several.
    layer.decomposable = True
    return layer.get_output(0)


def _network() -> Network:
    network = active_network()
    # samtrt.modeling.functional dispatches here only inside net_guard of such a network.
    assert isinstance(network, Network)
    return network


def _definition() -> Any:
    return _network().definition


def _add(name: str, layer: Any) -> Any:
    return _network().add(name, layer)


def _data_type(dtype: torch.dtype) -> Any:
    return getattr(_network().trt.DataType, _DATA_TYPES[dtype])


def _torch_dtype(x: Tensor) -> torch.dtype:
    return next(dtype for dtype in _DATA_TYPES if _data_type(dtype) == x.dtype)


def _weights(tensor: torch.Tensor) -> Any:
    """The tensor's memory as TensorRT weights, without a copy; the network keeps it alive."""
    tensor = tensor.detach().cpu().contiguous()
    network = _network()
    weights = network.trt.Weights(_data_type(tensor.dtype), tensor.data_ptr(), tensor.numel())
    network.keep(tensor, weights)
    return weights


def _constant(name: str, tensor: torch.Tensor, shape: Sequence[int]) -> Tensor:
    layer = _definition().add_constant(tuple(shape), _weights(tensor))
    return _add(name, layer).get_output(0)


def _scalar(value: float, like: Tensor, rank: int) -> Tensor:
    return _constant("constant", torch.tensor(value, dtype=_torch_dtype(like)), (1,) * rank)


def _slice(name: str, x: Tensor, start: Sequence[int], grown: Sequence[int]) -> Any:
    """A slice layer at ``start`` whose size along each axis is that of ``x`` plus ``grown``."""
    rank = len(x.shape)
    size = tuple(extent + more for extent, more in zip(x.shape, grown, strict=True))
    dynamic = -1 in tuple(x.shape)
    layer = _definition().add_slice(x, tuple(start), (0,) * rank if dynamic else size, (1,) * rank)
    _add(name, layer)
    if dynamic:
        shape = _add("shape", _definition().add_shape(x)).get_output(0)
        layer.set_input(2, add(shape, _constant("constant", torch.tensor(grown), (rank,))))
    return layer

"""Reads a built INetworkDefinition layer by layer and evaluates it in torch.

It stands in for an engine where none can run: what is evaluated is the network itself, as
TensorRT's own getters give it back, not what samtrt meant to build. It knows only the layers and
settings whose meaning is written here. Anything else, also a getter that a later TensorRT version
adds, raises ``UnknownNetworkError``: a reader that skips what it does not know would prove nothing.
"""

import ctypes
import math
from collections import Counter
from collections.abc import Callable
from graphlib import TopologicalSorter
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


class UnknownNetworkError(Exception):
    """The network holds something whose meaning the reader does not know, or contradicts itself."""


def evaluate(
    trt: ModuleType,
    definition: Any,
    inputs: dict[str, torch.Tensor],
    dtype: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """The network's outputs by name.

    Args:
        inputs: by name, in the types that the network declares.
        dtype: what all floating-point tensors are evaluated in; None for the network's own types.
    """
    return _Evaluation(trt, definition, dtype).run(inputs)


class _Layer:
    """One layer's settings and inputs, each of which must be asked for."""

    def __init__(self, trt: ModuleType, layer: Any, layer_class: Any) -> None:
        self.name, self.trt = layer.name, trt
        layer.__class__ = layer_class
        self.layer = layer
        self.unread = _settings(layer_class) - _settings(trt.ILayer)
        self._operands: dict[int, torch.Tensor] = {}
        self.require(getattr(layer, "num_ranks", 1) == 1, "more than one device")
        self.require(layer.num_outputs == 1, "more than one output")

    def read(self, setting: str) -> Any:
        self.unread.discard(setting)
        return getattr(self.layer, setting)

    def expect(self, setting: str, value: Any) -> None:
        found = self.read(setting)
        self.require(found == value, f"{setting} is {found}, not {value}")

    def operands(self, tensors: dict[str, torch.Tensor], known: int) -> list[torch.Tensor | None]:
        """The layer's inputs, None where one is not set."""
        count = self.layer.num_inputs
        self.require(count <= known, f"{count} inputs, at most {known} are known")
        inputs = [self.layer.get_input(index) for index in range(count)]
        operands = [None if tensor is None else tensors[tensor.name] for tensor in inputs]
        return operands + [None] * (known - count)

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            raise UnknownNetworkError(f"{self.name}: {text}")


class _Evaluation:
    def __init__(self, trt: ModuleType, definition: Any, dtype: torch.dtype | None) -> None:
        self.trt, self.definition, self.dtype = trt, definition, dtype
        self.tensors: dict[str, torch.Tensor] = {}
        # By name: older versions do not have them all.
        self.handlers: dict[str, tuple[str, Callable[[_Layer], torch.Tensor]]] = {
            "CONSTANT": ("IConstantLayer", self.constant),
            "SHAPE": ("IShapeLayer", self.shape),
            "CAST": ("ICastLayer", self.cast),
            "SHUFFLE": ("IShuffleLayer", self.shuffle),
            "SLICE": ("ISliceLayer", self.slice),
            "ELEMENTWISE": ("IElementWiseLayer", self.elementwise),
            "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", self.matrix_multiply),
            "CONCATENATION": ("IConcatenationLayer", self.concatenation),
            "CONVOLUTION": ("IConvolutionLayer", self.convolution),
            "NORMALIZATION": ("INormalizationLayer", self.normalization),
            "SOFTMAX": ("ISoftMaxLayer", self.softmax),
            "ACTIVATION": ("IActivationLayer", self.activation),
            "UNARY": ("IUnaryLayer", self.unary),
            "ATTENTION_INPUT": ("IAttentionInputLayer", self.attention_input),
            "ATTENTION_OUTPUT": ("IAttentionOutputLayer", self.attention_output),
        }

    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        definition = self.definition
        if not definition.get_flag(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise UnknownNetworkError("the network is not strongly typed")
        declared = [definition.get_input(index) for index in range(definition.num_inputs)]
        if sorted(tensor.name for tensor in declared) != sorted(inputs):
            raise UnknownNetworkError(f"inputs {[t.name for t in declared]}, given {list(inputs)}")
        for tensor in declared:
            self._store(tensor, inputs[tensor.name], "input")

        layers = [definition.get_layer(index) for index in range(definition.num_layers)]
        producers = {layer.get_output(0).name: index for index, layer in enumerate(layers)}
        if len(producers.keys() | inputs.keys()) != len(layers) + len(inputs):
            raise UnknownNetworkError("two tensors have the same name")
        sources = {
            index: [layer.get_input(i).name for i in range(layer.num_inputs) if layer.get_input(i)]
            for index, layer in enumerate(layers)
        }
        outputs = [definition.get_output(index).name for index in range(definition.num_outputs)]
        uses = Counter(outputs) + Counter(name for names in sources.values() for name in names)
        order = TopologicalSorter(
            {i: [producers[n] for n in names if n in producers] for i, names in sources.items()}
        ).static_order()
        for index in order:
            self._evaluate_layer(layers[index])
            for name in sources[index]:  # full-size attention scores do not all fit in memory
                uses[name] -= 1
                if not uses[name]:
                    del self.tensors[name]
        return {name: self.tensors[name] for name in outputs}

    def _evaluate_layer(self, layer: Any) -> None:
        kind = layer.type.name
        if kind not in self.handlers:
            raise UnknownNetworkError(f"{layer.name}: no meaning is known for a layer {kind}")
        layer_class, handler = self.handlers[kind]
        output = layer.get_output(0)
        reading = _Layer(self.trt, layer, getattr(self.trt, layer_class))
        value = handler(reading)
        if reading.unread:
            raise UnknownNetworkError(f"{reading.name}: settings {sorted(reading.unread)} not read")
        self._store(output, value, reading.name)

    def _store(self, tensor: Any, value: torch.Tensor, where: str) -> None:
        """Keeps a value whose shape and type must be those that TensorRT inferred."""
        declared = tuple(tensor.shape)
        expected = self._torch_dtype(tensor.dtype)
        shape_fits = len(declared) == value.ndim and all(
            size in (-1, found) for size, found in zip(declared, value.shape, strict=True)
        )
        if self.dtype is not None and value.is_floating_point():
            value = value.to(self.dtype)
        if not shape_fits or value.dtype != expected:
            raise UnknownNetworkError(
                f"{where}: TensorRT infers {declared} {expected}, "
                f"the reader finds {tuple(value.shape)} {value.dtype}"
            )
        self.tensors[tensor.name] = value

    def _torch_dtype(self, data_type: Any) -> torch.dtype:
        dtype = {
            self.trt.DataType.FLOAT: torch.float32,
            self.trt.DataType.HALF: torch.float16,
            self.trt.DataType.BF16: torch.bfloat16,
            self.trt.DataType.INT64: torch.int64,
        }.get(data_type)
        if dtype is None:
            raise UnknownNetworkError(f"tensors of type {data_type}")
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    # ------------------------------------------------------------------ one method a layer type

    def constant(self, layer: _Layer) -> torch.Tensor:
        layer.operands(self.tensors, 0)
        shape = tuple(layer.read("shape"))
        return self._weights(layer.read("weights"), shape)

    def shape(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        return torch.tensor(x.shape, dtype=torch.int64)

    def cast(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        return x.to(self._torch_dtype(layer.read("to_type")))

    def shuffle(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        x = x.permute(_axes(layer.read("first_transpose"), x.ndim))
        shape, placeholder = layer.read("reshape_dims"), layer.read("zero_is_placeholder")
        if shape is not None:
            layer.require(0 not in tuple(shape), f"placeholder {placeholder} in {tuple(shape)}")
            x = x.reshape(tuple(shape))
        return x.permute(_axes(layer.read("second_transpose"), x.ndim))

    def slice(self, layer: _Layer) -> torch.Tensor:
        x, start, size, stride, fill = layer.operands(self.tensors, 5)
        layer.expect("axes", None)
        layer.require(start is None and stride is None, "start or stride from a tensor")
        start, stride = tuple(layer.read("start")), tuple(layer.read("stride"))
        layer.require(stride == (1,) * x.ndim, f"stride {stride}")
        if size is None:
            size = tuple(layer.read("shape"))
        else:
            layer.unread.discard("shape")  # the tensor takes its place
            size = tuple(size.tolist())
        mode = layer.read("mode")
        modes = self.trt.SampleMode
        layer.require(mode in (modes.STRICT_BOUNDS, modes.FILL), f"mode {mode}")
        layer.require((fill is not None) <= (mode == modes.FILL), "a fill value outside FILL mode")
        index, target = [], []
        for first, length, extent in zip(start, size, x.shape, strict=True):
            low, high = max(first, 0), min(first + length, extent)
            inside = (low, high) == (first, first + length)
            layer.require(inside or mode == modes.FILL, f"{start}, {size} exceeds {x.shape}")
            index.append(slice(low, high))
            target.append(slice(low - first, high - first))
        value = 0.0 if fill is None else fill.item()
        result = torch.full(size, value, dtype=x.dtype)
        result[tuple(target)] = x[tuple(index)]
        return result

    def elementwise(self, layer: _Layer) -> torch.Tensor:
        x, y = layer.operands(self.tensors, 2)
        layer.require(x.ndim == y.ndim and x.dtype == y.dtype, "operands that do not match")
        operations = self.trt.ElementWiseOperation
        operation = layer.read("op")
        layer.require(operation in (operations.SUM, operations.PROD), f"operation {operation}")
        return x + y if operation == operations.SUM else x * y

    def matrix_multiply(self, layer: _Layer) -> torch.Tensor:
        operands = layer.operands(self.tensors, 2)
        for index, setting in enumerate(("op0", "op1")):
            operation = layer.read(setting)
            layer.require(operation != self.trt.MatrixOperation.VECTOR, "a vector operand")
            if operation == self.trt.MatrixOperation.TRANSPOSE:
                operands[index] = operands[index].transpose(-2, -1)
        x, y = operands
        layer.require(x.ndim == y.ndim and x.dtype == y.dtype, "operands that do not match")
        return x @ y

    def concatenation(self, layer: _Layer) -> torch.Tensor:
        operands = layer.operands(self.tensors, layer.layer.num_inputs)
        layer.require(len({operand.dtype for operand in operands}) == 1, "operands of two types")
        return torch.cat(operands, layer.read("axis"))

    def convolution(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        out_channels = layer.read("num_output_maps")
        layer.expect("num_groups", 1)
        layer.expect("dilation_nd", (1, 1))
        layer.expect("padding_mode", self.trt.PaddingMode.EXPLICIT_ROUND_DOWN)
        padding = tuple(layer.read("padding_nd"))
        layer.expect("pre_padding", padding)
        layer.expect("post_padding", padding)
        shape = (out_channels, x.shape[1], *layer.read("kernel_size_nd"))
        kernel = self._weights(layer.read("kernel"), shape)
        bias = layer.read("bias")
        bias = self._weights(bias, (out_channels,)) if bias.size else None
        return F.conv2d(x, kernel, bias, tuple(layer.read("stride_nd")), padding)

    def normalization(self, layer: _Layer) -> torch.Tensor:
        x, scale, bias = layer.operands(self.tensors, 3)
        layer.expect("num_groups", 1)
        layer.read("is_v2")  # differs for groups only
        layer.unread.discard("compute_precision")  # TensorRT 10; the input's type rules below
        layer.require(x.dtype in (torch.float32, self.dtype), f"statistics in {x.dtype}")
        axes = [axis for axis in range(x.ndim) if layer.read("axes") >> axis & 1]
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square().mean(axes, keepdim=True)
        return (x - mean) / torch.sqrt(variance + layer.read("epsilon")) * scale + bias

    def softmax(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        layer.require(x.dtype in (torch.float32, self.dtype), f"softmax in {x.dtype}")
        axis = math.log2(layer.read("axes"))
        layer.require(axis.is_integer(), "softmax over several axes")
        return torch.softmax(x, int(axis))

    def activation(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        layer.expect("alpha", 0.0)
        layer.expect("beta", 0.0)
        kind = layer.layer.type  # here the activation's type, not the layer's
        layer.require(kind == self.trt.ActivationType.GELU_ERF, f"activation {kind}")
        return F.gelu(x, approximate="none")

    def unary(self, layer: _Layer) -> torch.Tensor:
        (x,) = layer.operands(self.tensors, 1)
        operation = layer.read("op")
        layer.require(operation == self.trt.UnaryOperation.ERF, f"operation {operation}")
        return torch.erf(x)

    def attention_input(self, layer: _Layer) -> torch.Tensor:
        """Stands for the attention's inputs; its value is the result already."""
        layer.read("attention")
        q, k, v, mask = layer.operands(self.tensors, 4)
        layer.require(mask is not None and mask.dtype == q.dtype, "no mask, or of another type")
        # The definition (TensorRT's operator reference, "Attention"): BMM1, mask added, softmax,
        # BMM2, and no scaling. One fused kernel keeps the scores in float32.
        accumulator = torch.promote_types(q.dtype, torch.float32)
        result = torch.empty_like(q)
        for head in range(q.shape[1]):  # all scores of the full grid at once are a gigabyte
            scores = q[:, head].to(accumulator) @ k[:, head].to(accumulator).transpose(-2, -1)
            scores += mask[:, head if mask.shape[1] > 1 else 0]
            result[:, head] = torch.softmax(scores, -1).to(q.dtype) @ v[:, head]
        return result

    def attention_output(self, layer: _Layer) -> torch.Tensor:
        (result,) = layer.operands(self.tensors, 1)
        attention = layer.read("attention")
        known = {  # an enumeration's value by its name: older versions do not have them all
            "norm_op": "SOFTMAX",
            "causal": False,
            "causal_kind": "NONE",
            "query_form": "PADDED_BHND",
            "key_value_form": "PADDED_BHND",
            "query_lengths": None,
            "key_value_lengths": None,
            "normalization_quantize_scale": None,
            "num_ranks": 1,
            "num_outputs": 1,
            "num_inputs": 4,
        }
        settings = _settings(type(attention))
        for setting in settings & known.keys():
            found = getattr(attention, setting)
            found = getattr(found, "name", found)
            layer.require(found == known[setting], f"attention's {setting} is {found}")
        meaningless = {"name", "metadata", "decomposable"}
        # It has no value where no scale is set, and asking for it is an error.
        meaningless |= {"mask", "normalization_quantize_to_type"}
        unread = settings - known.keys() - meaningless
        layer.require(not unread, f"attention's settings {sorted(unread)} not read")
        return result

    def _weights(self, weights: Any, shape: tuple[int, ...]) -> torch.Tensor:
        if isinstance(weights, np.ndarray):
            tensor = torch.from_numpy(weights.copy())
        else:  # numpy has no bfloat16, and TensorRT gives its own object
            tensor = _bfloat16_weights(self.trt, weights)
        if tensor.numel() != math.prod(shape):
            raise UnknownNetworkError(f"{tensor.numel()} weights for shape {shape}")
        if self.dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        return tensor.reshape(shape)


def _settings(layer_class: Any) -> set[str]:
    return {
        name
        for name in dir(layer_class)
        if not name.startswith("_") and isinstance(getattr(layer_class, name), property)
    }


def _axes(permutation: Any, rank: int) -> list[int]:
    """A permutation that was never set reads as the identity over all eight axes."""
    return list(permutation)[:rank]


def _bfloat16_weights(trt: ModuleType, weights: Any) -> torch.Tensor:
    """Reads nvinfer1::Weights {int32 type; const void* values; int64 count} behind a binding."""
    if weights.dtype != trt.DataType.BF16:
        raise UnknownNetworkError(f"weights of type {weights.dtype}")
    pointer_size = ctypes.sizeof(ctypes.c_void_p)
    struct = ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value
    values = ctypes.c_void_p.from_address(struct + pointer_size).value
    count = ctypes.c_int64.from_address(struct + 2 * pointer_size).value
    if count != weights.size:
        raise UnknownNetworkError("the weights' memory cannot be read in this TensorRT version")
    memory = (ctypes.c_char * weights.nbytes).from_address(values)
    return torch.frombuffer(bytearray(memory), dtype=torch.bfloat16)

#!/usr/bin/env python3
"""From a written network to a TensorRT engine, with nothing but NumPy and TensorRT 8.6 to 11.

    python build_engine.py --output-dir ENGINE [--max-batch-size N] [--plugin-library FILE]

``samtrt build --write-network DIR`` puts this file beside the network that it writes: the folder
can be taken to a machine that has neither torch nor samtrt (a Jetson, a container; CPython 3.8 or
newer), and the engine folder back. samtrt itself builds by the same functions, so this file
imports nothing of samtrt.

Since TensorRT 10 the network is strongly typed: a layer computes in the type of its inputs. 8.6
is told the type of every layer and obeys; it has no fused attention, no bfloat16, and no GELU,
which is made of erf. A network with plugins (``samtrt build --plugins``) needs their library, which
``samtrt build-plugins`` compiles.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Sequence, Tuple, Union

import numpy as np

NETWORK_FILE, WEIGHTS_FILE = "network.json", "network.safetensors"
VERSION = 1  # of the written network
LIBRARIES = ("tensorrt", "tensorrt_rtx")
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
_NUMPY_TYPES = {"float32": np.float32, "float16": np.float16}
_STORED = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),  # of plugins, as is what follows
    "U8": ("uint8", 1),
}
PLUGIN = ("SamtrtKernel", "1", "")  # name, version, namespace
PLUGINS_NEED = "9.0"  # the compute capability that their machine code is for
AOT_PLUGINS_NEED = "8.0"  # the oldest that the PTX of ahead-of-time plugins is for
_WORKSPACE_BYTES = 4 << 30


class NetworkError(Exception):
    """The network cannot be read, or the installed TensorRT does not take it."""


class Weights(NamedTuple):
    """Weights as TensorRT reads them: a type of ``TYPES``, for plugins also int32 or uint8; sizes;
    and uint8 [all bytes]."""

    type: str
    shape: Tuple[int, ...]
    content: np.ndarray


# ------------------------------------------------------------------ what the library has


def is_strongly_typed(trt: Any) -> bool:
    """Whether layers take their inputs' types, instead of being told theirs."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def has_fused_attention(trt: Any) -> bool:
    """Whether there is a layer for the whole of attention (10.14 and later)."""
    definition = trt.INetworkDefinition
    return hasattr(definition, "add_attention_v2") or hasattr(definition, "add_attention")


def lacks(trt: Any) -> list[str]:
    """What this version has not, in words."""
    return [
        text
        for text, there in (
            ("strongly typed networks", is_strongly_typed(trt)),
            ("bf16", hasattr(trt.DataType, "BF16")),
            ("a fused attention layer", has_fused_attention(trt)),
            ("a GELU layer", hasattr(trt.ActivationType, "GELU_ERF")),
        )
        if not there
    ]


# ------------------------------------------------------------------ the network


class Network:
    """A TensorRT network and the memory that it refers to.

    Attributes:
        trt: the library.
        definition: its ``INetworkDefinition``.
    """

    def __init__(self, trt: Any, builder: Any) -> None:
        self.trt = trt
        self.is_strongly_typed = is_strongly_typed(trt)
        flags = trt.NetworkDefinitionCreationFlag
        flag = flags.STRONGLY_TYPED if self.is_strongly_typed else flags.EXPLICIT_BATCH
        self.definition = builder.create_network(1 << int(flag))
        # TensorRT holds weights by reference until the engine is built.
        self._kept: list[Any] = []

    def keep(self, *objects: Any) -> None:
        """Keeps objects alive as long as the network."""
        self._kept.extend(objects)

    def data_type(self, name: str) -> Any:
        """TensorRT's data type of a type of ``TYPES``."""
        found = getattr(self.trt.DataType, TYPES[name], None)
        if found is None:
            raise NetworkError(f"{_title(self.trt)} has no {name}; choose another precision")
        return found

    def add(self, name: str, layer: Any) -> Any:
        """Names a new layer and returns it."""
        if layer is None:
            raise NetworkError(f"{self.trt.__name__} refused layer {name}")
        layer.name = name
        return layer

    def weights(self, weights: Weights) -> Any:
        """Weights in the memory that they are in."""
        content = np.ascontiguousarray(weights.content)
        if weights.type in _NUMPY_TYPES:  # 8.6 takes arrays only
            made = self.trt.Weights(content.view(_NUMPY_TYPES[weights.type]))
        else:
            made = self.trt.Weights(
                self.data_type(weights.type), content.ctypes.data, math.prod(weights.shape)
            )
        self.keep(content, made)
        return made

    def constant(self, name: str, shape: Sequence[int], weights: Weights) -> Any:
        """The output of a constant layer."""
        layer = self.definition.add_constant(tuple(shape), self.weights(weights))
        return self.add(name, layer).get_output(0)

    def typed(self, layer: Any, type_name: str) -> Any:
        """The output of a layer that computes in that type."""
        if not self.is_strongly_typed:
            layer.precision = self.data_type(type_name)
            layer.set_output_type(0, self.data_type(type_name))
        return layer.get_output(0)


def add_network(
    trt: Any, builder: Any, description: Mapping[str, Any], weights: Mapping[str, Weights]
) -> Network:
    """The described network as layers of the installed version.

    Raises:
        NetworkError: it does not take them, or infers another shape or type.
    """
    network = Network(trt, builder)
    tensors = {}
    for given in description["inputs"]:
        tensors[given["name"]] = network.definition.add_input(
            given["name"], network.data_type(given["type"]), tuple(given["shape"])
        )
    for layer in description["layers"]:
        try:
            inputs = [tensors[name] for name in layer["inputs"]]
            tensors.update(_add_layer(network, layer, inputs, weights))
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise NetworkError(f"layer {layer.get('name')} cannot be made: {error!r}") from error
    for name, producer in description["outputs"].items():
        tensors[producer].name = name
        network.definition.mark_output(tensors[producer])
    return network


def _add_layer(
    network: Network, layer: Mapping[str, Any], inputs: list, weights: Mapping[str, Weights]
) -> Dict[str, Any]:
    if layer["kind"] not in _LAYERS:
        raise NetworkError(f"{layer['name']}: a layer of kind {layer['kind']} is not known")
    made = _LAYERS[layer["kind"]](network, layer, inputs, weights)
    outputs = made if isinstance(made, list) else [made]
    described = [layer, *layer.get("further", [])]
    if len(outputs) != len(described):
        raise NetworkError(
            f"{layer['name']} has {len(outputs)} outputs, the network says {len(described)}"
        )
    for output, expected in zip(outputs, described):
        _check(network, output, expected)
    return {each["name"]: output for each, output in zip(described, outputs)}


def _check(network: Network, output: Any, expected: Mapping[str, Any]) -> None:
    found, shape = tuple(output.shape), tuple(expected["shape"])
    wrong_type = network.is_strongly_typed and output.dtype != network.data_type(expected["type"])
    if found != shape or wrong_type:
        raise NetworkError(
            f"{expected['name']}: {_title(network.trt)} infers {found} {output.dtype}, "
            f"the network says {shape} {expected['type']}"
        )


# ------------------------------------------------------------------ one function a kind of layer

Layer = Mapping[str, Any]


def _constant(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    return network.constant(layer["name"], layer["shape"], weights[layer["weights"]])


def _cast(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    return _converted(network, layer["name"], inputs[0], layer["type"])


def _converted(network: Network, name: str, x: Any, type_name: str) -> Any:
    made = network.add(name, network.definition.add_cast(x, network.data_type(type_name)))
    if not network.is_strongly_typed:
        made.set_output_type(0, network.data_type(type_name))
    return made.get_output(0)


def _view(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    made = network.add(layer["name"], network.definition.add_shuffle(inputs[0]))
    made.reshape_dims = tuple(layer["sizes"])
    return network.typed(made, layer["type"])


def _permute(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    made = network.add(layer["name"], network.definition.add_shuffle(inputs[0]))
    made.first_transpose = tuple(layer["axes"])
    return network.typed(made, layer["type"])


def _pad(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    before, after = layer["before"], layer["after"]
    grown = [low + high for low, high in zip(before, after)]
    made = _block(network, layer["name"], inputs[0], [-low for low in before], grown)
    made.mode = network.trt.SampleMode.FILL
    size = 4 if layer["type"] == "float32" else 2
    zero = Weights(layer["type"], (), np.zeros(size, np.uint8))
    made.set_input(4, network.constant(layer["name"] + ".zero", (), zero))
    return network.typed(made, layer["type"])


def _slice(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    grown = [
        -first if length == -1 else length - extent
        for first, length, extent in zip(layer["start"], layer["size"], inputs[0].shape)
    ]
    made = _block(network, layer["name"], inputs[0], layer["start"], grown)
    return network.typed(made, layer["type"])


def _block(network: Network, name: str, x: Any, start: Sequence[int], grown: Sequence[int]) -> Any:
    """A slice layer at ``start`` whose size along each axis is that of ``x`` plus ``grown``."""
    definition, rank = network.definition, len(x.shape)
    size = tuple(extent + more for extent, more in zip(x.shape, grown))
    dynamic = -1 in tuple(x.shape)
    made = definition.add_slice(x, tuple(start), (0,) * rank if dynamic else size, (1,) * rank)
    made = network.add(name, made)
    if dynamic:
        shape = network.add(name + ".shape", definition.add_shape(x)).get_output(0)
        # The library's own integers: 32 bits until TensorRT 9, 64 since.
        more = np.array(grown, np.int32 if shape.dtype == network.trt.DataType.INT32 else np.int64)
        network.keep(more)
        more = network.add(name + ".grown", definition.add_constant((rank,), more)).get_output(0)
        total = definition.add_elementwise(shape, more, network.trt.ElementWiseOperation.SUM)
        made.set_input(2, network.add(name + ".size", total).get_output(0))
    return made


def _concat(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    made = network.add(layer["name"], network.definition.add_concatenation(inputs))
    made.axis = layer["axis"]
    return network.typed(made, layer["type"])


def _elementwise(operation: str) -> Callable[..., Any]:
    def make(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
        kind = getattr(network.trt.ElementWiseOperation, operation)
        made = network.definition.add_elementwise(inputs[0], inputs[1], kind)
        return network.typed(network.add(layer["name"], made), layer["type"])

    return make


def _matmul(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    operation = network.trt.MatrixOperation
    of_y = operation.TRANSPOSE if layer["transpose_y"] else operation.NONE
    made = network.definition.add_matrix_multiply(inputs[0], operation.NONE, inputs[1], of_y)
    return network.typed(network.add(layer["name"], made), layer["type"])


def _linear(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    """Rows [M, C] → [M, out]."""
    if not network.is_strongly_typed:
        return _linear_as_convolution(network, layer, inputs[0], weights)
    name, kernel = layer["name"], weights[layer["weight"]]
    operation = network.trt.MatrixOperation
    matrix = network.constant(name + ".weight", kernel.shape, kernel)
    made = network.definition.add_matrix_multiply(
        inputs[0], operation.NONE, matrix, operation.TRANSPOSE
    )
    if layer["bias"] is None:
        return network.add(name, made).get_output(0)
    product = network.add(name + ".product", made).get_output(0)
    bias = network.constant(name + ".bias", (1, kernel.shape[0]), weights[layer["bias"]])
    kind = network.trt.ElementWiseOperation.SUM
    made = network.definition.add_elementwise(product, bias, kind)
    return network.add(name, made).get_output(0)


def _linear_as_convolution(network: Network, layer: Layer, x: Any, weights: Mapping) -> Any:
    """Of M pictures [C, 1, 1]: TensorRT 8.6 finds no implementation of a norm and a product of
    matrices together where they are told their types, and puts convolutions by themselves."""
    name, kernel = layer["name"], weights[layer["weight"]]
    channels, columns = kernel.shape[1], kernel.shape[0]
    pictures = network.add(name + ".pictures", network.definition.add_shuffle(x))
    pictures.reshape_dims = (-1, channels, 1, 1)
    bias = network.trt.Weights(network.data_type(kernel.type))
    if layer["bias"] is not None:
        bias = network.weights(weights[layer["bias"]])
    made = network.definition.add_convolution_nd(
        network.typed(pictures, layer["type"]), columns, (1, 1), network.weights(kernel), bias
    )
    product = network.typed(network.add(name + ".product", made), layer["type"])
    rows = network.add(name, network.definition.add_shuffle(product))
    rows.reshape_dims = (-1, columns)
    return network.typed(rows, layer["type"])


def _conv2d(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    kernel = weights[layer["weight"]]
    bias = network.trt.Weights(network.data_type(kernel.type))
    if layer["bias"] is not None:
        bias = network.weights(weights[layer["bias"]])
    made = network.definition.add_convolution_nd(
        inputs[0], kernel.shape[0], tuple(layer["kernel"]), network.weights(kernel), bias
    )
    made = network.add(layer["name"], made)
    made.stride_nd = (layer["stride"],) * 2
    made.padding_nd = (layer["padding"],) * 2
    return network.typed(made, layer["type"])


def _layer_norm(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    definition = network.definition
    # v2 since TensorRT 10.15; without groups they are the same.
    add = getattr(definition, "add_normalization_v2", None) or definition.add_normalization
    made = network.add(layer["name"], add(*inputs, 1 << layer["axis"]))
    made.epsilon = layer["eps"]
    if not network.is_strongly_typed:
        made.compute_precision = network.data_type("float32")
    return network.typed(made, layer["type"])


def _softmax(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    made = network.add(layer["name"], network.definition.add_softmax(inputs[0]))
    made.axes = 1 << (len(layer["shape"]) - 1)
    return network.typed(made, layer["type"])


def _gelu(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    kind = getattr(network.trt.ActivationType, "GELU_ERF", None)
    if kind is not None:
        made = network.add(layer["name"], network.definition.add_activation(inputs[0], kind))
        return network.typed(made, layer["type"])
    return _gelu_of_erf(network, layer, inputs[0])


def _gelu_of_erf(network: Network, layer: Layer, x: Any) -> Any:
    """x · ½ · (1 + erf(x / √2)), in float32: for negative x the sum cancels."""
    name, definition = layer["name"], network.definition
    operation = network.trt.ElementWiseOperation

    def number(suffix: str, value: float) -> Any:
        content = np.array([value], np.float32).view(np.uint8)
        weights = Weights("float32", (), content)
        return network.constant(name + suffix, (1,) * len(x.shape), weights)

    def combined(suffix: str, a: Any, b: Any, kind: Any) -> Any:
        made = network.add(name + suffix, definition.add_elementwise(a, b, kind))
        return network.typed(made, "float32")

    precise = _converted(network, name + ".float32", x, "float32")
    scaled = combined(".scaled", precise, number(".root", 0.5**0.5), operation.PROD)
    erf = definition.add_unary(scaled, network.trt.UnaryOperation.ERF)
    erf = network.typed(network.add(name + ".erf", erf), "float32")
    half = combined(".half", precise, number(".factor", 0.5), operation.PROD)
    share = combined(".share", erf, number(".one", 1.0), operation.SUM)
    return _converted(
        network, name, combined(".product", half, share, operation.PROD), layer["type"]
    )


def _attention(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    trt, definition = network.trt, network.definition
    q, k, v, bias = inputs
    if hasattr(definition, "add_attention_v2"):
        made = definition.add_attention_v2(
            q, k, v, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        )
    elif hasattr(definition, "add_attention"):  # TensorRT 10.14 to 10.16
        made = definition.add_attention(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, False)
    else:
        raise NetworkError(
            f"{_title(trt)} has no fused attention layer; expected 10.14 or later, or choose "
            "--attention plain"
        )
    network.add(layer["name"], made).mask = bias
    # A GPU may have no fused kernel for this head size and mask; it may then take several.
    made.decomposable = True
    return made.get_output(0)


def _plugin(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    """A layer whose fields are bytes: a description, machine code, constants (plugins/layer.h)."""
    trt = network.trt
    if not _has_plugin(trt):
        raise NetworkError(
            "the network has plugins, and their library is not loaded; `samtrt build-plugins` "
            "compiles it, --plugin-library names it"
        )
    fields = []
    for index, name in enumerate(layer["fields"]):
        content = np.ascontiguousarray(weights[name].content).view(np.int8)
        network.keep(content)
        fields.append(trt.PluginField(str(index), content, trt.PluginFieldType.INT8))
    registry, collection = trt.get_plugin_registry(), trt.PluginFieldCollection(fields)
    if _has_plugins_v3(trt):
        creator = registry.get_creator(*PLUGIN)
        plugin = creator.create_plugin(layer["name"], collection, trt.TensorRTPhase.BUILD)
    else:
        plugin = registry.get_plugin_creator(*PLUGIN).create_plugin(layer["name"], collection)
    if plugin is None:
        raise NetworkError(f"the plugin refuses {layer['name']}; its message is above")
    network.keep(plugin)
    if _has_plugins_v3(trt):
        made = network.definition.add_plugin_v3(inputs, [], plugin)
    else:
        made = network.definition.add_plugin_v2(inputs, plugin)
    made = network.add(layer["name"], made)
    return [made.get_output(index) for index in range(made.num_outputs)]


def _aot_plugin(network: Network, layer: Layer, inputs: list, weights: Mapping) -> Any:
    """A layer of an ahead-of-time Python plugin: PTX, and how it is launched."""
    described = [layer, *layer.get("further", [])]
    define = _aot_definition(network.trt, layer["plugin"], len(inputs), len(described))
    plugin = define(
        *inputs,
        launch=json.dumps(layer["launch"]),
        results=json.dumps([[each["type"], each["shape"][1:]] for each in described]),
        ptx=weights[layer["ptx"]].content.tobytes().decode(),
    )
    made = network.add(layer["name"], network.definition.add_plugin(plugin, True))
    return [made.get_output(index) for index in range(made.num_outputs)]


_LAYERS: Dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "cast": _cast,
    "view": _view,
    "permute": _permute,
    "pad": _pad,
    "slice": _slice,
    "concat": _concat,
    "add": _elementwise("SUM"),
    "mul": _elementwise("PROD"),
    "matmul": _matmul,
    "linear": _linear,
    "conv2d": _conv2d,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "gelu": _gelu,
    "attention": _attention,
    "plugin": _plugin,
    "aot_plugin": _aot_plugin,
}


# ------------------------------------------------------------------ the plugins' library


def has_plugins(description: Mapping[str, Any]) -> bool:
    """Whether a network has layers of the plugin."""
    return any(layer["kind"] == "plugin" for layer in description["layers"])


def load_plugins(trt: Any, library: Path) -> str:
    """Has TensorRT load the plugins' library; once, however often it is asked to.

    Returns:
        The digest of its sources.

    Raises:
        NetworkError: it is not there, cannot be loaded, or is none for this version.
    """
    if trt.__name__ != "tensorrt":
        raise NetworkError(
            f"{_title(trt)} takes no plugins from Python; install tensorrt, or choose "
            "--plugins none"
        )
    if not library.is_file():
        raise NetworkError(
            f"the plugin library {library} does not exist; `samtrt build-plugins` compiles it"
        )
    try:
        loaded = ctypes.CDLL(str(library.resolve()))
        digest, major = loaded.samtrt_plugins_sha256, loaded.samtrt_plugins_tensorrt_major()
    except (OSError, AttributeError) as error:
        raise NetworkError(f"the plugin library {library} cannot be loaded: {error}") from error
    if major != int(trt.__version__.split(".")[0]):
        raise NetworkError(
            f"the plugin library {library} was compiled for TensorRT {major}, and {_title(trt)} is "
            "installed; compile it again with `samtrt build-plugins`"
        )
    if not _has_plugin(trt):
        trt.get_plugin_registry().load_library(str(library.resolve()))
    if not _has_plugin(trt):
        raise NetworkError(f"{_title(trt)} does not load the plugin library {library}")
    digest.restype = ctypes.c_char_p
    return str(digest().decode())


def _has_plugins_v3(trt: Any) -> bool:
    """Whether plugins are of the kind that TensorRT has since 10 (plugins/plugin_v3.cpp)."""
    return hasattr(trt.INetworkDefinition, "add_plugin_v3")


def _has_plugin(trt: Any) -> bool:
    """Whether TensorRT knows the plugin; by the list, since to ask for one that is not there is an
    error in TensorRT's log. What only runs engines has no network definition to look at."""
    registry = trt.get_plugin_registry()
    listed = "all_creators" if hasattr(registry, "all_creators") else "plugin_creator_list"
    creators = getattr(registry, listed, ())
    return PLUGIN in [(each.name, each.plugin_version, each.plugin_namespace) for each in creators]


# ------------------------------------------------------------------ ahead-of-time Python plugins


def aot_plugins(trt: Any) -> Any:
    """The library's module ``plugin``, of a version with ahead-of-time plugins.

    Raises:
        NetworkError: it has none.
    """
    offers = hasattr(trt, "QuickPluginCreationRequest")
    if not (offers and hasattr(trt.INetworkDefinition, "add_plugin")):
        raise NetworkError(
            f"{_title(trt)} has no ahead-of-time Python plugins; expected tensorrt 10.14 or newer, "
            "or choose another --plugins"
        )
    return importlib.import_module(trt.__name__ + ".plugin")


def _aot_definition(trt: Any, name: str, input_count: int, output_count: int) -> Any:
    """What makes plugins ``samtrt::name``; TensorRT is told of it once.

    It takes the inputs, and in JSON how the kernel is launched and the types and shapes of its
    outputs, and PTX. The engine keeps what comes of these, not them.
    """
    plugins = aot_plugins(trt)
    if hasattr(plugins.op, "samtrt") and hasattr(plugins.op.samtrt, name):
        return getattr(plugins.op.samtrt, name)

    def described(*inputs: Any, launch: str, results: str, ptx: str) -> Any:
        batch = inputs[0].shape_expr[0]
        return tuple(
            plugins.from_shape_expr((batch, *shape), getattr(trt.DataType, TYPES[type_name]))
            for type_name, shape in json.loads(results)
        )

    def launched(*given: Any) -> Any:
        settings, ptx = json.loads(given[input_count]), given[input_count + 2]
        x, y, z_of_one = settings["grid"]
        launch = plugins.KernelLaunchParams(x, y, given[0].shape_expr[0] * z_of_one)
        launch.block_x, launch.shared_mem = settings["threads"], settings["shared_bytes"]
        # Between the addresses of the inputs and of the outputs.
        sizes = plugins.SymIntExprs.from_tuple(
            [plugins.SymInt32(size) for size in settings["sizes"]]
        )
        return settings["function"], ptx, launch, sizes

    # TensorRT reads the signatures.
    text, tensor = Union[str, bytes], plugins.TensorDesc  # noqa: UP007 (Python 3.8)
    taken = {f"input{index}": tensor for index in range(input_count)}
    taken.update(launch=str, results=str, ptx=str)
    outputs: Any = Tuple[(tensor,) * output_count]
    described.__signature__ = _signature(taken, outputs)  # type: ignore[attr-defined]
    launched.__signature__ = _signature(  # type: ignore[attr-defined]
        {**taken, "outputs": outputs, "tactic": int},
        Tuple[text, text, plugins.KernelLaunchParams, plugins.SymIntExprs],
    )
    plugins.register("samtrt::" + name)(described)
    plugins.aot_impl("samtrt::" + name)(launched)
    return getattr(plugins.op.samtrt, name)


def _signature(parameters: Mapping[str, Any], returned: Any) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    made = [inspect.Parameter(name, kind, annotation=each) for name, each in parameters.items()]
    return inspect.Signature(made, return_annotation=returned)


# ------------------------------------------------------------------ the engine


def configure(
    trt: Any, builder: Any, description: Mapping[str, Any], precision: str, max_batch_size: int
) -> Any:
    """An ``IBuilderConfig`` for 1…max_batch_size pictures.

    Args:
        precision: fp32 (without TF32), fp16 or bf16.
    """
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    if not is_strongly_typed(trt):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        if precision == "fp16":
            config.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    for given in description["inputs"]:
        one = tuple(given["shape"][1:])
        most = (max_batch_size, *one)
        profile.set_shape(given["name"], (1, *one), most, most)
    config.add_optimization_profile(profile)
    return config


def _title(trt: Any) -> str:
    return f"{trt.__name__} {trt.__version__}"


# ------------------------------------------------------------------ the written folder


def read_network(folder: Path) -> Tuple[Dict[str, Any], Dict[str, Weights]]:
    """A written network and its weights, which stay in the file until they are used.

    Raises:
        NetworkError: it is not there, of another version, or damaged.
    """
    description = read_description(folder)
    weights = _read_weights(folder / WEIGHTS_FILE, description.get("weights_sha256"))
    missing = _names_of_weights(description) - weights.keys()
    if missing:
        raise NetworkError(f"{folder / WEIGHTS_FILE} has no {', '.join(sorted(missing)[:5])}")
    return description, weights


def read_description(folder: Path) -> Dict[str, Any]:
    """A written network without its weights.

    Raises:
        NetworkError: it is not there, or of another version.
    """
    file = folder / NETWORK_FILE
    try:
        description: Dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = description["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NetworkError(f"{file} cannot be read: {error}") from error
    if version != VERSION:
        raise NetworkError(f"{file} has version {version}, expected {VERSION}")
    return description


def _names_of_weights(description: Mapping[str, Any]) -> set[str]:
    settings = ("weights", "weight", "bias", "ptx")
    names = {
        layer[setting]
        for layer in description["layers"]
        for setting in settings
        if layer.get(setting) is not None
    }
    return names.union(*(layer.get("fields", ()) for layer in description["layers"]))


def _read_weights(file: Path, sha256: Any) -> Dict[str, Weights]:
    """A safetensors file: eight bytes of header length, a JSON header, and all tensors."""
    try:
        content = np.memmap(file, np.uint8, "r")
        if hashlib.sha256(content.data).hexdigest() != sha256:
            raise ValueError("it is not the file that the network was written with")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        weights = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            type_name, size = _STORED[entry["dtype"]]
            shape, (first, end) = tuple(entry["shape"]), entry["data_offsets"]
            raw = content[start + first : start + end]
            if len(raw) != math.prod(shape) * size:
                raise ValueError(f"{name} has {len(raw)} bytes for {list(shape)}")
            weights[name] = Weights(type_name, shape, raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"{file} cannot be read: {error}") from error
    return weights


def main() -> None:
    """Builds an engine folder from the network beside this file."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Builds a TensorRT engine of a written network.")
    parser.add_argument("--network", type=Path, default=here, help="its folder (default: this one)")
    parser.add_argument("--output-dir", type=Path, required=True, help="the engine folder")
    parser.add_argument(
        "--max-batch-size", type=int, metavar="N", help="default: the network's, or 1"
    )
    parser.add_argument(
        "--plugin-library", type=Path, metavar="FILE", help="of a network with plugins"
    )
    parser.add_argument("--optimization-level", type=int, metavar="0-5", help="TensorRT's own")
    parser.add_argument(
        "--no-library-tactics",
        action="store_true",
        help="no kernels of cuBLAS and cuDNN, where those are not installed (TensorRT 8 and 9)",
    )
    arguments = parser.parse_args()
    try:
        _build(arguments)
    except NetworkError as error:
        sys.exit(f"error: {error}")


def _build(arguments: argparse.Namespace) -> None:
    description, weights = read_network(arguments.network)
    record = dict(description["engine"])
    batch = _max_batch_size(arguments.max_batch_size, description)
    trt = _library()
    print(f"{_title(trt)} lacks {', '.join(lacks(trt)) or 'nothing that is used here'}")
    log = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # the binding's way to say that there is none
        raise NetworkError(
            f"{_title(trt)} cannot start here; it needs a GPU and a driver that it supports"
        ) from error
    if has_plugins(description):
        record["plugins_sha256"] = _prepare_plugins(trt, arguments.plugin_library)
    if _has_aot_plugins(description):
        _check_aot_plugins(trt)
    start = time.time()
    network = add_network(trt, builder, description, weights)
    config = configure(trt, builder, description, record["precision"], batch)
    if arguments.optimization_level is not None:
        config.builder_optimization_level = arguments.optimization_level
    if arguments.no_library_tactics:
        config.set_tactic_sources(0)
    print(f"building {network.definition.num_layers} layers", flush=True)
    engine = builder.build_serialized_network(network.definition, config)
    if engine is None:
        raise NetworkError(f"{_title(trt)} could not build the engine; its messages are above")
    content = bytes(engine)
    record.update(
        library=trt.__name__,
        library_version=trt.__version__,
        compute_capability=_compute_capability() if trt.__name__ == "tensorrt" else None,
        max_batch_size=batch,
        build_seconds=round(time.time() - start, 3),
        engine_sha256=hashlib.sha256(content).hexdigest(),
    )
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    _replace(arguments.output_dir / "encoder.engine", content)
    _replace(arguments.output_dir / "encoder.json", json.dumps(record, indent=2).encode() + b"\n")
    print(
        f"{len(content) / 1e6:.0f} MB in {record['build_seconds']:.0f} s, "
        f"written to {arguments.output_dir}; nobody has compared its output with fp32 yet"
    )


def _max_batch_size(wanted: int | None, description: Mapping[str, Any]) -> int:
    written = int(description["engine"]["max_batch_size"])
    batch = written if wanted is None else wanted
    if batch < 1:
        raise NetworkError(f"--max-batch-size is {batch}, expected 1 or more")
    if has_plugins(description) and batch > written:
        raise NetworkError(
            f"--max-batch-size is {batch}, and the network's plugins were written for 1 to "
            f"{written}"
        )
    return batch


def _prepare_plugins(trt: Any, library: Path | None) -> str:
    if library is None:
        raise NetworkError(
            "the network has plugins: name their library with --plugin-library; "
            "`samtrt build-plugins` compiles it"
        )
    found = _compute_capability()
    if found != PLUGINS_NEED:
        raise NetworkError(
            f"the plugins' machine code is for compute capability {PLUGINS_NEED}, and this GPU has "
            f"{found}; write the network with --plugins none"
        )
    return load_plugins(trt, library)


def _has_aot_plugins(description: Mapping[str, Any]) -> bool:
    return any(layer["kind"] == "aot_plugin" for layer in description["layers"])


def _check_aot_plugins(trt: Any) -> None:
    aot_plugins(trt)
    found = _compute_capability()
    if float(found) < float(AOT_PLUGINS_NEED):
        raise NetworkError(
            f"the plugins' PTX is for compute capability {AOT_PLUGINS_NEED} and newer, and this "
            f"GPU has {found}; write the network with --plugins none"
        )


def _library() -> Any:
    for name in LIBRARIES:
        try:
            return __import__(name)
        except ImportError as error:
            reason = error
    raise NetworkError(f"neither {' nor '.join(LIBRARIES)} can be imported: {reason}")


def _compute_capability() -> str:
    """Of the first GPU, as "9.0"."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuInit(0)
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, MINOR
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0):
            raise NetworkError("the GPU's compute capability cannot be read")
        numbers.append(str(value.value))
    return ".".join(numbers)


def _replace(file: Path, content: bytes) -> None:
    """Writes a file in one step."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(file)


if __name__ == "__main__":
    main()

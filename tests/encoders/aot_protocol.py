"""Has NVIDIA's own Python code of ahead-of-time plugins make the layers of a written network.

    python tests/encoders/aot_protocol.py BINDINGS NETWORK BATCH…

BINDINGS is the folder ``tensorrt_bindings`` of an unpacked wheel (tensorrt-cu13-bindings 10.13 to
11): its folder ``plugin`` is what TensorRT would call, and what it calls back. The layers around
are those of TensorRT-RTX, which infers their shapes and types. What neither can do without TensorRT
stands here: numbers in place of symbols, a registry, and the classes that C++ would implement.

Prints, as JSON, a line a layer: what TensorRT would be told of it, for each batch size.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import tensorrt_rtx as rtx

from samtrt.encoders.tensorrt import standalone
from samtrt.encoders.tensorrt.library import shared_log


class Number:
    """For IDimensionExpr. The batch, and what comes of it, is not known when an engine is built."""

    def __init__(self, value: int, known: bool = True) -> None:
        self.value, self.known = value, known

    def is_constant(self) -> bool:
        return self.known

    def get_constant_value(self) -> int:
        assert self.known
        return self.value


class Builder:
    """For IExprBuilder."""

    operations: ClassVar[dict[str, Callable[[int, int], int]]] = {
        "SUM": int.__add__,
        "PROD": int.__mul__,
        "SUB": int.__sub__,
        "FLOOR_DIV": int.__floordiv__,
        "CEIL_DIV": lambda a, b: -(-a // b),
        "MAX": max,
        "MIN": min,
    }

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, kind: Any, first: Number, second: Number) -> Number:
        value = self.operations[kind.name](first.value, second.value)
        return Number(value, first.known and second.known)


class Symbol:
    """For ISymExpr: what NVIDIA's code puts into it."""

    type: Any = None
    dtype: Any = None
    expr: Number

    def number(self) -> int:
        assert self.type == rtx.PluginArgType.INT
        assert self.dtype == rtx.PluginArgDataType.INT32
        return self.expr.value


class Symbols(dict[int, Symbol]):
    """For ISymExprs."""

    nbSymExprs = 0  # noqa: N815 (NVIDIA's)


class Exprs(list[Any]):
    """For DimsExprs."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class Request(Enum):
    PREFER_JIT, PREFER_AOT, STRICT_JIT, STRICT_AOT = range(4)


class AotBuild:
    """For IPluginV3QuickAOTBuild."""


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        assert namespace == creator.plugin_namespace
        self.creators[(creator.name, creator.plugin_version, namespace)] = creator

    def get_creator(self, *plugin: str) -> Any:
        return self.creators[plugin]


class Definition:
    """TensorRT-RTX's network, in which what plugins give are inputs."""

    def __init__(self, definition: Any, batches: list[int]) -> None:
        self.definition, self.batches = definition, batches
        self.plugins: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.definition, name)

    def add_plugin(self, make: Callable[[Request], Any], aot: bool) -> Any:
        assert aot is True
        inputs, shape_inputs, plugin = make(Request.STRICT_AOT)
        assert not shape_inputs and isinstance(plugin, AotBuild)
        told = {batch: drive(plugin, inputs, batch) for batch in self.batches}
        self.plugins.append({"inputs": [tensor.name for tensor in inputs], "told": told})
        outputs = [
            self.definition.add_input(
                f"plugin {len(self.plugins)}.{index}",
                getattr(rtx.DataType, type_name),
                (-1, *shape[1:]),
            )
            for index, (type_name, shape) in enumerate(told[self.batches[0]]["outputs"])
        ]
        return SimpleNamespace(num_outputs=len(outputs), get_output=outputs.__getitem__)


def described(data_type: Any, shape: list[int]) -> Any:
    tensor = rtx.DynamicPluginTensorDesc()
    tensor.desc.type, tensor.desc.format = data_type, rtx.TensorFormat.LINEAR
    tensor.desc.dims = tensor.min = tensor.opt = tensor.max = tuple(shape)
    return tensor


def drive(plugin: Any, inputs: list[Any], batch: int) -> dict[str, Any]:
    """What TensorRT asks of a plugin, in its order."""
    plugin = plugin.clone()
    types = [tensor.dtype for tensor in inputs]
    dims = []
    for tensor in inputs:
        dims.append(Exprs(len(tensor.shape)))
        dims[-1][:] = [Number(batch, False) if n == -1 else Number(n) for n in tensor.shape]
    shapes = [[number.value for number in each] for each in dims]
    output_types = plugin.get_output_data_types(types, [len(shape) for shape in shapes])
    assert len(output_types) == plugin.get_num_outputs()
    output_shapes = [
        [side.value for side in exprs] for exprs in plugin.get_output_shapes(dims, [], Builder())
    ]
    every = [
        described(data_type, shape)
        for data_type, shape in zip(types + output_types, shapes + output_shapes, strict=True)
    ]
    formats = plugin.get_supported_format_combinations(every, len(inputs))
    assert [(each.type, each.format) for each in formats] == [
        (each.desc.type, rtx.TensorFormat.LINEAR) for each in every
    ]
    plugin.configure_plugin(every[: len(inputs)], every[len(inputs) :])
    assert plugin.get_valid_tactics() == []
    plugin.set_tactic(0)
    launch, sizes = SimpleNamespace(), Symbols()
    plugin.get_launch_params(dims, every, len(inputs), launch, sizes, Builder())
    concrete = [each.desc for each in every]
    function, ptx = plugin.get_kernel(concrete[: len(inputs)], concrete[len(inputs) :])
    assert list(sizes) == list(range(sizes.nbSymExprs))
    return {
        "outputs": [[t.name, shape] for t, shape in zip(output_types, output_shapes, strict=True)],
        "grid": [launch.grid_x.number(), launch.grid_y.number(), launch.grid_z.number()],
        "block": [launch.block_x.number(), launch.block_y.number(), launch.block_z.number()],
        "shared_bytes": launch.shared_mem.number(),
        "sizes": [symbol.number() for symbol in sizes.values()],
        "function": function,
        "ptx_sha256": hashlib.sha256(ptx).hexdigest(),
    }


def library(bindings: Path, batches: list[int]) -> ModuleType:
    """A ``tensorrt`` whose layers are TensorRT-RTX's and whose plugins are the wheel's."""
    trt = ModuleType("tensorrt")
    trt.__dict__.update({name: getattr(rtx, name) for name in dir(rtx) if name[:2] != "__"})
    registry = Registry()
    trt.__dict__.update(
        __version__=rtx.__version__,
        __path__=[str(bindings)],
        IDimensionExpr=Number,
        ISymExpr=Symbol,
        DimsExprs=Exprs,
        IPluginV3QuickAOTBuild=AotBuild,
        QuickPluginCreationRequest=Request,
        INetworkDefinition=SimpleNamespace(add_plugin=None, add_attention_v2=None),
        get_plugin_registry=lambda: registry,
    )
    sys.modules["tensorrt"] = trt
    return trt


def main(bindings: Path, network: Path, batches: list[int]) -> None:
    assert importlib.util.find_spec("tensorrt") is None, "there is a TensorRT here"
    trt = library(bindings, batches)
    builder = rtx.Builder(shared_log(rtx))
    made: list[Definition] = []

    def create_network(flags: int) -> Definition:
        made.append(Definition(builder.create_network(flags), batches))
        return made[0]

    description, weights = standalone.read_network(network)
    standalone.add_network(
        trt, SimpleNamespace(create_network=create_network), description, weights
    )
    for plugin in made[0].plugins:
        print(json.dumps(plugin))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(batch) for batch in sys.argv[3:]])

"""The image encoder's network written down: layers of no TensorRT version yet, and their weights.

``samtrt.encoders.tensorrt.standalone`` makes the layers of whichever version is installed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from samtrt.encoders.tensorrt.launches import AotLayer, Batched, PluginLayer


@dataclass(frozen=True)
class RecordedTensor:
    """What a layer gives, or an input of the network.

    Attributes:
        name: of the layer, or of the input.
        shape: the first axis is −1 where it goes with the batch.
        dtype: its type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class RecordedLayer:
    """A layer: its kind and settings (see ``samtrt.encoders.tensorrt.ops``), inputs and output.

    A layer of the plugin may have further outputs.
    """

    kind: str
    inputs: tuple[RecordedTensor, ...]
    output: RecordedTensor
    settings: dict[str, Any] = field(default_factory=dict)
    further: tuple[RecordedTensor, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return {
            "name": self.output.name,
            "kind": self.kind,
            "inputs": [tensor.name for tensor in self.inputs],
            "type": type_name(self.output.dtype),
            "shape": list(self.output.shape),
            **({"further": [_to_json(tensor) for tensor in self.further]} if self.further else {}),
            **self.settings,
        }


class Recording:
    """A network under construction.

    Inside ``net_guard(recording)`` every op of ``samtrt.modeling.functional`` adds layers to it.

    Attributes:
        ops: the op back end, ``samtrt.encoders.tensorrt.ops``.
        inputs: the network's inputs.
        layers: in the order of definition, each after those that it reads.
        weights: by name, as the model has them: nothing is copied.
        outputs: name of an output to the tensor that it is.
    """

    def __init__(self, ops: ModuleType) -> None:
        self.ops = ops
        self.inputs: list[RecordedTensor] = []
        self.layers: list[RecordedLayer] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, RecordedTensor] = {}
        self._path = ""
        self._uses: dict[str, int] = {}

    @contextmanager
    def scope(self, path: str) -> Iterator[None]:
        """Names the layers added in the block after the module at that path."""
        outer, self._path = self._path, path
        try:
            yield
        finally:
            self._path = outer

    def add_input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> RecordedTensor:
        """Adds an input of the network."""
        self.inputs.append(RecordedTensor(name, tuple(shape), dtype))
        return self.inputs[-1]

    def add(
        self,
        kind: str,
        inputs: Sequence[RecordedTensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        name: str | None = None,
        **settings: Any,
    ) -> RecordedTensor:
        """Adds a layer ``module.path/name``; its name is its kind where none is given."""
        output = RecordedTensor(self._unique(name or kind), tuple(shape), dtype)
        self.layers.append(RecordedLayer(kind, tuple(inputs), output, settings))
        return output

    def add_plugin(
        self, name: str, inputs: Sequence[RecordedTensor], layer: PluginLayer
    ) -> tuple[RecordedTensor, ...]:
        """Adds a layer of the plugin; gives its outputs. What layers share is kept once."""
        full = self._unique(name)
        fields = [self._shared(f"{full}.launches", layer.description)]
        for code in layer.codes:
            fields.append(self._shared(f"code.{hashlib.sha256(code).hexdigest()[:16]}", code))
        for index, constant in enumerate(layer.constants):
            fields.append(self._shared(f"{full}.constant{index}", constant))
        return self._add_batched(full, "plugin", inputs, layer.outputs, fields=fields)

    def add_aot_plugin(
        self, name: str, inputs: Sequence[RecordedTensor], layer: AotLayer
    ) -> tuple[RecordedTensor, ...]:
        """Adds a layer of an ahead-of-time Python plugin; gives its outputs."""
        ptx = self._shared(f"ptx.{hashlib.sha256(layer.ptx).hexdigest()[:16]}", layer.ptx)
        settings = {"plugin": layer.plugin, "launch": layer.launch, "ptx": ptx}
        return self._add_batched(
            self._unique(name), "aot_plugin", inputs, layer.outputs, **settings
        )

    def _add_batched(
        self,
        name: str,
        kind: str,
        inputs: Sequence[RecordedTensor],
        outputs: Sequence[Batched],
        **settings: Any,
    ) -> tuple[RecordedTensor, ...]:
        """Adds a layer of one output or several."""
        made = tuple(
            RecordedTensor(name if not index else f"{name}.{index}", (-1, *each.shape), each.dtype)
            for index, each in enumerate(outputs)
        )
        self.layers.append(RecordedLayer(kind, tuple(inputs), made[0], settings, made[1:]))
        return made

    def _shared(self, name: str, content: torch.Tensor | bytes) -> str:
        """The name of weights that are kept, whoever kept them first."""
        if isinstance(content, bytes):
            if name not in self.weights:
                self.weights[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return name
        for known, weights in self.weights.items():
            if weights is content:
                return known
        self.weights[name] = content
        return name

    def keep(self, name: str, weights: torch.Tensor) -> str:
        """Keeps weights of the module at the current path; gives the name that they have here."""
        name = f"{self._path}.{name}" if self._path else name
        while name in self.weights and self.weights[name] is not weights:
            name += "_"  # a number among the layers; parameters have their own names
        self.weights[name] = weights
        return name

    def description(self) -> dict[str, Any]:
        """All but the weights, as ``json`` can write it."""
        return {
            "inputs": [_to_json(tensor) for tensor in self.inputs],
            "layers": [layer.to_json() for layer in self.layers],
            "outputs": {name: tensor.name for name, tensor in self.outputs.items()},
        }

    def _unique(self, name: str) -> str:
        full = f"{self._path}/{name}" if self._path else name
        uses = self._uses[full] = self._uses.get(full, 0) + 1
        return full if uses == 1 else f"{full}_{uses}"


def _to_json(tensor: RecordedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name, "type": type_name(tensor.dtype), "shape": list(tensor.shape)
    }  # fmt: skip


def type_name(dtype: torch.dtype) -> str:
    """A type as a written network names it: float32, float16, bfloat16; int32 and uint8 for what
    the plugin's layers have."""
    return str(dtype).removeprefix("torch.")

"""A TensorRT network under construction."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from samtrt.encoders.tensorrt.library import shared_log
from samtrt.errors import EngineError


class Network:
    """A TensorRT network under construction.

    Inside ``net_guard(network)`` every op of ``samtrt.modeling.functional`` adds layers to it.

    Attributes:
        trt: the TensorRT library in use (``tensorrt`` or ``tensorrt_rtx``).
        definition: its ``INetworkDefinition``.
        ops: the op back end, ``samtrt.encoders.tensorrt.ops``.
    """

    def __init__(self, trt: Any, definition: Any, ops: ModuleType) -> None:
        self.trt = trt
        self.definition = definition
        self.ops = ops
        self._path = ""
        self._uses: dict[str, int] = {}
        # TensorRT holds weights by reference until the engine is built.
        self._kept: list[Any] = []

    @contextmanager
    def scope(self, path: str) -> Iterator[None]:
        """Names the layers added in the block after the module at that path."""
        outer, self._path = self._path, path
        try:
            yield
        finally:
            self._path = outer

    def keep(self, *objects: Any) -> None:
        """Keeps objects alive as long as the network."""
        self._kept.extend(objects)

    def add(self, name: str, layer: Any) -> Any:
        """Names a new layer ``module.path/name`` and returns it.

        Raises:
            EngineError: TensorRT refused the layer (``layer`` is None).
        """
        full = f"{self._path}/{name}" if self._path else name
        uses = self._uses[full] = self._uses.get(full, 0) + 1
        full = full if uses == 1 else f"{full}_{uses}"
        if layer is None:
            reason = shared_log(self.trt).first_error()
            raise EngineError(f"{self.trt.__name__} refused layer {full}: {reason}")
        layer.name = full
        return layer

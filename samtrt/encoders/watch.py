"""What has become of a module since it was looked at: its layers, and its parameters."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from samtrt.modeling.layers import is_hooked
from samtrt.torch_state import as_written

_PLAIN = (int, float, bool, str, tuple)
_SMALL = 1 << 12  # elements of a tensor that is compared as it is


class Watch:
    """Sees whether a module's layers and parameters are the same, and in the same memory.

    It holds the module's parts and not the module, so that the module ends when its owner lets go.

    Args:
        module: the root; its own class and hooks are its owner's matter.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers: list[tuple[nn.Module, type, str]] = []
        self._counted: list[tuple[dict[str, Any], int, str]] = []
        self._child: list[tuple[dict[str, Any], str, nn.Module | None, str]] = []
        self._settings: list[tuple[dict[str, Any], str, Any, str]] = []
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        for path, layer in module.named_modules():
            if layer is not module:
                self._layers.append((layer, type(layer), path))
            below = f"{path}." if path else ""
            modules: dict[str, Any] = layer._modules
            own: dict[str, Any] = layer._parameters
            self._counted += [(modules, len(modules), path), (own, len(own), path)]
            self._child += [(modules, name, child, below + name) for name, child in modules.items()]
            settings = [
                (name, value)
                for name, value in layer.__dict__.items()
                if type(value) in _PLAIN and name not in ("training", "call_super_init", "img_size")
            ]
            if layer is module:  # whose own dict holds whoever watches
                self._root, self._own_settings = weakref.ref(module), settings
            else:
                self._settings += [(layer.__dict__, *setting, path) for setting in settings]
            self._tensors += [
                (own, name, tensor, tensor.data_ptr(), version_of(tensor))
                for name, tensor in own.items()
                if tensor is not None
            ]

    def changed_layer(self) -> str | None:
        """The path of a layer that was replaced, added, taken out, hooked or set otherwise."""
        # Loops: generators take twice as long.
        for layer, kind, path in self._layers:
            if type(layer) is not kind or is_hooked(layer):
                return path
        for named, count, path in self._counted:
            if len(named) != count:
                return path
        for modules, name, child, path in self._child:
            if modules.get(name) is not child:
                return path
        for settings, name, value, path in self._settings:
            if settings.get(name) != value:
                return path
        root = self._root()
        for name, value in self._own_settings:
            if root is not None and root.__dict__.get(name) != value:
                return name
        return None

    def has_new_weights(self) -> bool:
        """Whether a parameter is another tensor, moved, or was written to.

        Writes through ``parameter.data`` leave no trace; see ``Checksum``.
        """
        for own, name, tensor, address, version in self._tensors:
            if own.get(name) is not tensor or tensor.data_ptr() != address:
                return True
            if version_of(tensor) != version:
                return True
        return False


def version_of(tensor: Tensor) -> int:
    """torch's count of the writes to a tensor; tensors of inference mode have none."""
    return 0 if tensor.is_inference() else tensor._version


class Checksum:
    """Sees writes that leave no trace, such as ``parameter.data.mul_``, by reading all of it.

    Of each matrix the product with a fixed random vector is kept, and small tensors as they are: a
    change of one element changes a bit of that, unless it is lost in the rounding of float32 sums.

    Args:
        tensors: on one device.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._small: list[Tensor] = []
        self._large: list[Tensor] = []
        for tensor in tensors:
            is_small = tensor.ndim < 2 or tensor.numel() <= _SMALL
            (self._small if is_small else self._large).append(tensor.detach())
        self._probes: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        self._seen = self._sums()

    def is_unchanged(self) -> bool:
        """Waits for the device."""
        sums = self._sums()
        return all(
            found.is_meta or torch.equal(_bits(found), _bits(seen))
            for found, seen in zip(sums, self._seen, strict=True)
        )

    def _sums(self) -> list[Tensor]:
        """A vector for each dtype and device."""
        parts: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        with as_written():
            for tensor in self._small:
                parts.setdefault(_kind(tensor), []).append(tensor.reshape(-1))
            for tensor in self._large:
                rows = tensor.reshape(len(tensor), -1)
                parts.setdefault(_kind(tensor), []).append(rows @ self._probe(rows))
            return [torch.cat(vectors) for vectors in parts.values()]

    def _probe(self, rows: Tensor) -> Tensor:
        key = rows.shape[1], rows.dtype, rows.device
        if key not in self._probes:
            generator = torch.Generator().manual_seed(rows.shape[1])
            values = torch.randn(
                rows.shape[1], generator=generator, dtype=torch.float32, device="cpu"
            )
            self._probes[key] = values.to(rows.device, rows.dtype)
        return self._probes[key]


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _bits(values: Tensor) -> Tensor:
    """As integers, so that NaN equals itself."""
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])

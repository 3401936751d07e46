"""Modules and their parameters: a tree whose paths are Meta's key names and TensorRT's layer names.

``torch.nn.Module`` is not used: inside a network guard the same ``forward`` runs on TensorRT
tensors, and parameters become constants of that network.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samtrt.errors import CheckpointError
from samtrt.modeling.network import active_network

if TYPE_CHECKING:
    from typing_extensions import Self


def stored_tensor(value: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A stored parameter as a torch tensor, without gradients, of the same memory."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    with warnings.catch_warnings():
        # A memory-mapped array is read-only, which torch warns of; nobody writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(value)


class Parameter:
    """A named constant of the model.

    Args:
        shape: the stored shape; None stands for any length.
        full_precision: keep at least float32 where the model is loaded in a lower precision.
        prepare: maps the stored tensor, in float32, to the constant that the ops use.
    """

    def __init__(
        self,
        *shape: int | None,
        full_precision: bool = False,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.name = ""
        self.shape = shape
        self._full_precision = full_precision
        self._prepare = prepare
        self._value: torch.Tensor | None = None

    @property
    def value(self) -> torch.Tensor:
        """The constant, contiguous, in the precision it was loaded with."""
        if self._value is None:
            raise ValueError(f"parameter {self.name} has no value yet; call load() on the model")
        return self._value

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a stored tensor of that shape fits."""
        return len(shape) == len(self.shape) and all(
            own in (None, other) for own, other in zip(self.shape, shape, strict=True)
        )

    def load(self, tensor: np.ndarray | torch.Tensor, dtype: torch.dtype) -> None:
        """Takes a stored tensor; its memory is shared where nothing has to be converted."""
        tensor = stored_tensor(tensor)
        if self._full_precision:
            dtype = torch.promote_types(dtype, torch.float32)
        if self._prepare is not None:
            tensor = self._prepare(tensor.to(torch.promote_types(tensor.dtype, torch.float32)))
        self._value = tensor.to(dtype).contiguous()


class Module:
    """A node of the model: children and parameters are its attributes.

    Attributes:
        path: names from the root, joined by dots ("blocks.7.attn"); empty at the root.
    """

    path: str = ""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, (Module, Parameter)):
            _rename(value, f"{self.path}.{name}" if self.path else name)

    def __call__(self, *args: Any) -> Any:
        network = active_network()
        if network is None:
            return self.forward(*args)
        with network.scope(self.path):
            return self.forward(*args)

    def forward(self, *args: Any) -> Any:
        """The module's computation, over ops of ``samtrt.modeling.functional`` only."""
        raise NotImplementedError

    def parameters(self) -> Iterator[Parameter]:
        """All parameters of this module and below it, in the order of definition."""
        for value in vars(self).values():
            if isinstance(value, Parameter):
                yield value
            elif isinstance(value, Module):
                yield from value.parameters()

    def load(
        self,
        tensors: Mapping[str, np.ndarray] | Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> "Self":
        """Gives every parameter its value, cast to ``dtype``.

        Args:
            tensors: name (the parameter's path) to stored tensor.
            dtype: what the model computes in; normalisation parameters keep float32 at least.

        Raises:
            CheckpointError: names every missing, unexpected or wrongly shaped tensor.
        """
        parameters = {parameter.name: parameter for parameter in self.parameters()}
        faults = [f"missing {name}" for name in parameters if name not in tensors]
        faults += [f"unexpected {name}" for name in tensors if name not in parameters]
        faults += [
            f"{name} has shape {list(tensors[name].shape)}, expected {_shape_text(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in tensors and not parameter.accepts(tensors[name].shape)
        ]
        if faults:
            raise CheckpointError(f"the parameters do not fit the model: {'; '.join(faults)}")
        for name, parameter in parameters.items():
            parameter.load(tensors[name], dtype)
        return self


class ModuleList(Module):
    """Modules by index; their paths are "<list>.0", "<list>.1", ….

    Called, it passes its argument through them in order.
    """

    def __init__(self, modules: Sequence[Module]) -> None:
        for index, module in enumerate(modules):
            setattr(self, str(index), module)

    def __iter__(self) -> Iterator[Module]:
        return (value for value in vars(self).values() if isinstance(value, Module))

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


def _rename(node: Module | Parameter, path: str) -> None:
    if isinstance(node, Parameter):
        node.name = path
        return
    node.__dict__["path"] = path
    for name, value in vars(node).items():
        if isinstance(value, (Module, Parameter)):
            _rename(value, f"{path}.{name}")


def _shape_text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"

"""The network that is being defined, if any: what the op vocabulary dispatches on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from torch import nn


class Network(Protocol):
    """A network under construction, of whichever back end.

    Inside ``net_guard(network)`` every op of ``samtrt.modeling.functional`` adds layers to it.

    Attributes:
        ops: the op back end: a module with the primitives of ``samtrt.modeling.functional``.
    """

    ops: Any

    def scope(self, path: str) -> AbstractContextManager[None]:
        """Names the layers added in the block after the module at that path."""
        ...


_Network = TypeVar("_Network", bound=Network)

_active: ContextVar[Network | None] = ContextVar("samtrt_active_network", default=None)


def active_network() -> Network | None:
    """The network that ops add layers to, or None where they compute."""
    return _active.get()


@contextmanager
def net_guard(network: _Network, model: nn.Module | None = None) -> Iterator[_Network]:
    """Makes ``network`` the active one inside the block, and restores the former one after it,
    also when the block raises. Other threads are not affected.

    Args:
        model: whose modules give the layers that they add their paths.
    """
    token = _active.set(network)
    with ExitStack() as hooks:
        hooks.callback(_active.reset, token)
        for path, module in model.named_modules() if model is not None else ():
            _name_layers(network, module, path, hooks)
        yield network


def _name_layers(network: Network, module: nn.Module, path: str, hooks: ExitStack) -> None:
    scopes: list[AbstractContextManager[None]] = []

    def enter(*_: object) -> None:
        scopes.append(network.scope(path))
        scopes[-1].__enter__()

    def leave(*_: object) -> None:
        scopes.pop().__exit__(None, None, None)

    hooks.enter_context(module.register_forward_pre_hook(enter))
    hooks.enter_context(module.register_forward_hook(leave, always_call=True))

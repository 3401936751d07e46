"""The network that is being defined, if any: what the op vocabulary dispatches on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar


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
def net_guard(network: _Network) -> Iterator[_Network]:
    """Makes ``network`` the active one inside the block, and restores the former one after it,
    also when the block raises. Other threads are not affected."""
    token = _active.set(network)
    try:
        yield network
    finally:
        _active.reset(token)

"""The layers beside torch's own that the model is made of, with Meta's names
(``segment_anything/modeling/common.py``); and whether a layer computes what its class says, since
others may have replaced, wrapped or hooked it."""

from collections.abc import Callable
from operator import is_

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Image tokens at a time on the CPU: what becomes of them stays in a core's second-level cache.
_ROWS = 512


class LayerNorm2d(nn.Module):
    """Normalises the channels of [B, C, h, w] at each position, in fp32."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.over_last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def over_last(self, x: Tensor) -> Tensor:
        """The same of channels that come last: [..., C]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them: [..., C] → [..., C]."""

    def __init__(self, embedding_dim: int, mlp_dim: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embedding_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embedding_dim)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


def in_rows(compute: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """``compute(*tokens)``, on the CPU for a few rows at a time.

    Args:
        compute: [..., S, C] tensors → [..., n · S, D], each row of its inputs by itself.
        tokens: its inputs, all of as many rows S; what is exported or captured is in one piece.
    """
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or tokens[0].device.type != "cpu"
        or tokens[0].shape[-2] <= _ROWS
    ):
        return compute(*tokens)
    rows = zip(*(x.split(_ROWS, dim=-2) for x in tokens), strict=True)
    return torch.cat([compute(*few) for few in rows], dim=-2)


def is_hooked(layer: nn.Module) -> bool:
    """Whether somebody else's code runs before, after or in place of the layer's own."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def are_plain(kind: type[nn.Module], *layers: nn.Module) -> bool:
    """Whether all compute as that class of layer does, and nothing else runs: their parameters say
    it all. (Not by their type: torch's exporters put one of their own around it.)"""
    forward: object = kind.forward
    return all(
        isinstance(layer, kind) and type(layer).forward is forward and not is_hooked(layer)
        for layer in layers
    )


def touched_layer(module: nn.Module) -> str | None:
    """The path of a layer, at or below a module, that is of another package or hooked."""
    for path, layer in module.named_modules():
        if not type(layer).__module__.startswith(_OWN) or is_hooked(layer):
            return path or type(layer).__name__
    return None


class Layers:
    """The layers at and below modules, as they are now, to be looked at before each call:
    ``touched_layer`` walks the tree, which takes longer than a small call computes."""

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules
        layers = [layer for module in modules for layer in module.modules()]
        self._kinds = [*map(type, layers)]
        self._layers = layers
        self._seen = [(layer.__dict__, (*layer._modules.values(),)) for layer in layers]

    def are_of(self, *modules: nn.Module) -> bool:
        """Whether it is these modules whose layers they are."""
        return len(modules) == len(self._modules) and all(map(is_, modules, self._modules))

    def are_in_place(self) -> bool:
        """Whether none was added, taken out or replaced since."""
        # (Modules equal themselves alone.)
        return all((*own["_modules"].values(),) == children for own, children in self._seen)

    def are_untouched(self) -> bool:
        """Whether all are in place and of their classes, and none is hooked (``is_hooked``)."""
        if [*map(type, self._layers)] != self._kinds:
            return False
        for own, children in self._seen:  # a loop: generators take twice as long
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or "forward" in own
                or (*own["_modules"].values(),) != children
            ):
                return False
        return True


_OWN = ("samtrt.modeling.", "torch.nn.modules.")

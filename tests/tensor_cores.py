"""Half-precision products on a CPU as a GPU's tensor cores compute them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.linear.default,
    _aten.matmul.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.conv2d.default,
}


class TensorCores(TorchDispatchMode):
    """Products of fp16 tensors with fp32 accumulators, rounded once to fp16.

    Without it a processor that has no fp16 arithmetic takes forty times as long for one, and how
    it accumulates depends on the processor.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        operands = [x for x in args if isinstance(x, torch.Tensor)]
        if func not in _PRODUCTS or any(x.dtype != torch.float16 for x in operands):
            return func(*args, **(kwargs or {}))
        return func(*tree_map(_accumulated, args), **(kwargs or {})).to(torch.float16)


def _accumulated(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, torch.Tensor) else value

"""The op vocabulary on torch tensors, one call a function.

Contracts, shapes and checks are in ``samtrt.modeling.functional``; nothing else calls this module.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from samtrt.modeling.torch_attention import fused_rel_pos_attention as fused_rel_pos_attention


def constant(value: torch.Tensor, rank: int | None, name: str) -> torch.Tensor:
    return value if rank is None else value.reshape((1,) * (rank - value.ndim) + value.shape)


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


def view(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return x.reshape(tuple(shape))


def permute(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    return x.permute(*axes)


def pad(x: torch.Tensor, before: Sequence[int], after: Sequence[int]) -> torch.Tensor:
    last_axis_first = reversed(list(zip(before, after, strict=True)))
    return F.pad(x, [amount for pair in last_axis_first for amount in pair])


def slice(x: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    for axis, (first, length) in enumerate(zip(start, size, strict=True)):
        if (first, length) == (0, -1):
            continue
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


def concat(tensors: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    return torch.cat(list(tensors), axis)


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def mul(x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    return x * y


def matmul(x: torch.Tensor, y: torch.Tensor, transpose_y: bool) -> torch.Tensor:
    return x @ (y.transpose(-2, -1) if transpose_y else y)


def conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int
) -> torch.Tensor:
    # Channels last, so that the tokens that the model permutes it to lie in a row.
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, stride, padding)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, axis: int
) -> torch.Tensor:
    channels_last = x.movedim(axis, -1)
    if not (x.is_cpu and x.dtype == torch.bfloat16):  # there torch casts inside, in one pass
        channels_last = channels_last.to(weight.dtype)
    y = F.layer_norm(channels_last, weight.shape, weight, bias, eps)
    return y.to(x.dtype).movedim(-1, axis)


def softmax(x: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.softmax(x, -1, dtype=dtype).to(x.dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)

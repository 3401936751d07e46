"""The op vocabulary on torch tensors, one call a function.

Contracts, shapes and checks are in ``samtrt.modeling.functional``; nothing else calls this module.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


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


# ----------------------------------------------------------------------
# Attention with decomposed relative positions on torch tensors.
#
# The bias of the scores is a product: with the one-hot row and column of each key,
#
#     bias = q · rel_h[y, y'] + q · rel_w[x, x'] = [by_row, by_column] · [onehot(y'), onehot(x')]
#
# A window's bias is made like that and added. A global block of ViT-B would have 12 · 4096²
# biases, 400 MB in bf16 to be written and read again; there the product becomes part of q · k, as
# H + W more
# channels, which costs less wherever a bf16 product is cheap. In fp32 a product costs more than a
# bias, so the bias is made by addition, one head at a time.

_BIAS_BYTES = 64 << 20  # up to here a bias is made at once


def fused_rel_pos_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor
) -> torch.Tensor:
    """``samtrt.modeling.functional.fused_rel_pos_attention`` on torch tensors."""
    batch, heads, tokens, _ = q.shape
    grid = q.unflatten(2, (len(rel_h), len(rel_w)))
    by_row = torch.einsum("bnyxd,ykd->bnyxk", grid, rel_h)
    by_column = torch.einsum("bnyxd,xkd->bnyxk", grid, rel_w)
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _spelled_out(q, k, v, by_row, by_column)  # as every format knows it
    if batch * heads * tokens * tokens * q.element_size() <= _BIAS_BYTES:
        return _with_bias(q, k, v, by_row, by_column)
    if q.dtype in (torch.bfloat16, torch.float16) and not by_row.requires_grad:
        return _with_more_channels(q, k, v, by_row, by_column)
    return _head_by_head(q, k, v, by_row, by_column)


def _bias(by_row: torch.Tensor, by_column: torch.Tensor) -> torch.Tensor:
    bias = by_row[..., None] + by_column[..., None, :]
    return bias.flatten(4).flatten(2, 3)


def _spelled_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + _bias(by_row, by_column)
    return scores.softmax(-1) @ v


def _with_bias(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    products = torch.cat([by_row, by_column], -1).flatten(2, 3)
    bias = F.linear(products, _onehot_row_and_column(by_row, by_column))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _with_more_channels(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    head_dim = q.shape[-1]
    channels = head_dim + by_row.shape[-1] + by_column.shape[-1]
    # Flash attention wants q, k and v equally wide: v's further channels are zero.
    wide_q, wide_k, wide_v = (q.new_empty(*q.shape[:-1], channels) for _ in range(3))
    wide_q[..., :head_dim] = q
    products = wide_q[..., head_dim:].unflatten(2, by_row.shape[2:4])
    torch.mul(by_row, head_dim**0.5, out=products[..., : by_row.shape[-1]])
    torch.mul(by_column, head_dim**0.5, out=products[..., by_row.shape[-1] :])
    wide_k[..., :head_dim] = k
    wide_k[..., head_dim:] = _onehot_row_and_column(by_row, by_column)
    wide_v[..., :head_dim] = v
    wide_v[..., head_dim:] = 0
    output = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=head_dim**-0.5)
    return output[..., :head_dim]


def _head_by_head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    parts = zip(*(x.split(1, dim=1) for x in (q, k, v, by_row, by_column)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=_bias(by_row, by_column))
        for q, k, v, by_row, by_column in parts
    ]
    return torch.cat(outputs, 1)


def _onehot_row_and_column(by_row: torch.Tensor, by_column: torch.Tensor) -> torch.Tensor:
    """[H·W, H + W]: of each key the one-hot row and the one-hot column."""
    height, width = by_row.shape[-1], by_column.shape[-1]
    rows, columns = (
        torch.eye(n, dtype=by_row.dtype, device=by_row.device) for n in (height, width)
    )
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], 1)

"""Attention with decomposed relative positions on torch tensors.

The bias of the scores is a product: with the one-hot row and column of each key,

    bias = q · rel_h[y, y'] + q · rel_w[x, x'] = [by_row, by_column] · [onehot(y'), onehot(x')]

A window's bias is made like that and added. A global block of ViT-B would have 12 · 4096² biases,
400 MB in bf16 to be written and read again; there the product becomes part of q · k, as H + W more
channels, which costs less wherever a bf16 product is cheap. In fp32 a product costs more than a
bias, so the bias is made by addition, one head at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_BIAS_BYTES = 64 << 20  # up to here a bias is made at once


def fused_rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor
) -> Tensor:
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


def _bias(by_row: Tensor, by_column: Tensor) -> Tensor:
    bias = by_row[..., None] + by_column[..., None, :]
    return bias.flatten(4).flatten(2, 3)


def _spelled_out(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + _bias(by_row, by_column)
    return scores.softmax(-1) @ v


def _with_bias(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    products = torch.cat([by_row, by_column], -1).flatten(2, 3)
    bias = F.linear(products, _onehot_row_and_column(by_row, by_column))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _with_more_channels(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
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


def _head_by_head(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    parts = zip(*(x.split(1, dim=1) for x in (q, k, v, by_row, by_column)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=_bias(by_row, by_column))
        for q, k, v, by_row, by_column in parts
    ]
    return torch.cat(outputs, 1)


def _onehot_row_and_column(by_row: Tensor, by_column: Tensor) -> Tensor:
    """[H·W, H + W]: of each key the one-hot row and the one-hot column."""
    height, width = by_row.shape[-1], by_column.shape[-1]
    rows, columns = (
        torch.eye(n, dtype=by_row.dtype, device=by_row.device) for n in (height, width)
    )
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], 1)

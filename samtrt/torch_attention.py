"""Attention with decomposed relative positions on torch tensors, without its bias matrix.

A global block of ViT-B has 12 · 4096² biases, 400 MB in bf16 that would be written and read
again. But the bias is a product, too: with the one-hot row and column of each key,

    (q / √D) · k + q · rel_h[y, y'] + q · rel_w[x, x']
        = [q, √D · by_row, √D · by_column] / √D · [k, onehot(y'), onehot(x')]

so torch's flash attention takes it in as H + W more channels. Where multiplying is cheap (bf16 on
AMX) that beats adding a bias; in fp32 the bias wins, made for a few heads at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.module import Parameter

_BIAS_BYTES = 64 << 20  # of the biases held at once


def fused_rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Parameter, rel_w: Parameter
) -> Tensor:
    """``samtrt.functional.fused_rel_pos_attention`` on torch tensors."""
    by_row, by_column = _products(q, rel_h.value, rel_w.value)
    if q.dtype in (torch.bfloat16, torch.float16):
        return _with_more_channels(q, k, v, by_row, by_column)
    return _with_bias(q, k, v, by_row, by_column)


def _products(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, heads, H·W, D] → q · rel_h [B, heads, H·W, H] and q · rel_w [B, heads, H·W, W]."""
    grid = q.unflatten(2, (len(rel_h), len(rel_w)))
    by_row = torch.einsum("bnyxd,ykd->bnyxk", grid, rel_h)
    by_column = torch.einsum("bnyxd,xkd->bnyxk", grid, rel_w)
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def _with_more_channels(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    head_dim, height, width = q.shape[-1], by_row.shape[-1], by_column.shape[-1]
    middle = head_dim + height
    # Flash attention wants q, k and v equally wide: v's further channels are zero.
    wide_q, wide_k, wide_v = (
        q.new_empty(*q.shape[:-1], head_dim + height + width) for _ in range(3)
    )
    wide_q[..., :head_dim] = q
    torch.mul(by_row, head_dim**0.5, out=wide_q[..., head_dim:middle])
    torch.mul(by_column, head_dim**0.5, out=wide_q[..., middle:])
    wide_k[..., :head_dim] = k
    wide_k[..., head_dim:middle] = torch.eye(height, dtype=q.dtype).repeat_interleave(width, 0)
    wide_k[..., middle:] = torch.eye(width, dtype=q.dtype).repeat(height, 1)
    wide_v[..., :head_dim] = v
    wide_v[..., head_dim:] = 0
    output = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=head_dim**-0.5)
    return output[..., :head_dim]


def _with_bias(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    batch, heads, tokens, _ = q.shape
    at_once = max(1, _BIAS_BYTES // (batch * tokens * tokens * q.element_size()))
    outputs = []
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        bias = by_row[:, some, :, :, None] + by_column[:, some, :, None, :]
        outputs.append(
            F.scaled_dot_product_attention(
                q[:, some], k[:, some], v[:, some], attn_mask=bias.flatten(3)
            )
        )
    return torch.cat(outputs, 1)

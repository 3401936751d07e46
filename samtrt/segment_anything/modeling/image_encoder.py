"""Pictures to embeddings (Meta's ``modeling/image_encoder.py``)."""

import torch
from torch import Tensor

from samtrt.modeling import functional as F
from samtrt.modeling.image_encoder import (
    Attention,
    Block,
    ImageEncoderViT,
    PatchEmbed,
    relative_positions,
    resize_rel_pos,
)
from samtrt.modeling.layers import LayerNorm2d, MLPBlock

__all__ = [
    "Attention",
    "Block",
    "ImageEncoderViT",
    "LayerNorm2d",
    "MLPBlock",
    "PatchEmbed",
    "add_decomposed_rel_pos",
    "get_rel_pos",
    "window_partition",
    "window_unpartition",
]

_Sides = tuple[int, int]


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, _Sides]:
    """Tokens [B, H, W, C] → windows [B · n, window_size, window_size, C], and the (H', W') that
    zeros below and to the right padded them to."""
    height, width = (-(-side // window_size) * window_size for side in x.shape[1:3])
    return F.window_partition(x, window_size), (height, width)


def window_unpartition(windows: Tensor, window_size: int, pad_hw: _Sides, hw: _Sides) -> Tensor:
    """What ``window_partition`` made, padded to ``pad_hw``, back to tokens [B, H, W, C] of ``hw``.

    Raises:
        ValueError: ``pad_hw`` is not what ``hw`` is padded to.
    """
    expected = tuple(-(-side // window_size) * window_size for side in hw)
    if tuple(pad_hw) != expected:
        raise ValueError(f"{tuple(hw)} tokens are padded to {expected}, and pad_hw is {pad_hw}")
    return F.window_unpartition(windows, window_size, hw)


def get_rel_pos(q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
    """Embeddings [q_size, k_size, D] of a table [L, D] for queries and keys along one axis; the
    shorter axis is stretched to the longer one."""
    if q_size == k_size:
        return relative_positions(q_size, rel_pos)
    longer = max(q_size, k_size)
    table = resize_rel_pos(rel_pos, longer)
    q, k = (torch.arange(n, device=table.device) * max(longer / n, 1.0) for n in (q_size, k_size))
    # Meta's offset: the last key's place on the stretched axis.
    return table[(q[:, None] - k[None, :] + (k_size - 1) * (longer / k_size)).long()]


def add_decomposed_rel_pos(
    attn: Tensor,
    q: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    q_size: _Sides,
    k_size: _Sides,
) -> Tensor:
    """Scores [B, qh · qw, kh · kw] plus the decomposed relative positions of unscaled queries.

    Args:
        q: [B, qh · qw, D].
        rel_pos_h, rel_pos_w: tables [L, D] of the two axes.
        q_size, k_size: (qh, qw) and (kh, kw), in tokens.
    """
    grid = q.unflatten(1, q_size)
    rel_h = get_rel_pos(q_size[0], k_size[0], rel_pos_h)
    rel_w = get_rel_pos(q_size[1], k_size[1], rel_pos_w)
    rows = torch.einsum("bhwc,hkc->bhwk", grid, rel_h)
    columns = torch.einsum("bhwc,wkc->bhwk", grid, rel_w)
    bias = rows[..., :, None] + columns[..., None, :]
    return attn + bias.reshape(attn.shape)

"""Attention with relative positions, step by step, for a TensorRT without a layer for it.

A version that fuses nothing here pays for every tensor that it writes and every kernel that it
launches. So the positions' products are one over all rows (a product for each picture and head
is a launch for each), and they are further channels of q: what they add to the scores costs no
tensor of the scores' size.
"""

import torch

from samtrt.encoders.tensorrt.recording import RecordedTensor as Tensor
from samtrt.modeling import functional as F

_ALIGNMENT = 16  # channels of a product are a multiple of it, for kernels that read vectors


def rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor, fused: bool = True
) -> Tensor:
    """``samtrt.modeling.functional.rel_pos_attention`` of recorded tensors."""
    if fused:
        return F.fused_rel_pos_attention(q, k, v, rel_h, rel_w)
    _, heads, tokens, channels = q.shape
    height, width = len(rel_h), len(rel_w)
    extra = -(channels + height + width) % _ALIGNMENT
    rows = F.view(q, (-1, channels))
    by_row = F.matmul(rows, F.constant(_by_offset(rel_h), 2, "rel_pos_h"), transpose_y=True)
    by_row = F.permute(F.view(by_row, (-1, height, width, by_row.shape[-1])), (0, 2, 1, 3))
    by_row = F.view(_skewed(by_row, height), (-1, width, height, height))
    by_row = F.permute(by_row, (0, 2, 1, 3))
    by_column = F.matmul(rows, F.constant(_by_offset(rel_w), 2, "rel_pos_w"), transpose_y=True)
    by_column = _skewed(by_column, width)

    wide_q = F.concat(
        [
            F.mul(q, float(channels**-0.5)),
            F.view(by_row, (-1, heads, tokens, height)),
            F.view(by_column, (-1, heads, tokens, width)),
        ],
        3,
    )
    if extra:
        wide_q = F.pad(wide_q, (0, 0, 0, 0), (0, 0, 0, extra))
    places = F.constant(_places(height, width, channels, extra).to(rel_h.dtype), 4, "places")
    wide_k = F.add(F.pad(k, (0, 0, 0, 0), (0, 0, 0, height + width + extra)), places)
    return F.matmul(F.softmax(F.matmul(wide_q, wide_k, transpose_y=True)), v)


def _by_offset(table: torch.Tensor) -> torch.Tensor:
    """[S, S, D] by query and key as [L, D]: row j is that of key − query = j − (S − 1); L is
    2·S − 1 rounded up, by rows of zeros.

    Raises:
        ValueError: pairs that lie as far apart have different rows, which SAM's never do.
    """
    rows = torch.cat([table.flip(0)[:-1, 0], table[0]])
    side = torch.arange(len(table))
    if not torch.equal(table, rows[side - side[:, None] + len(table) - 1]):
        raise ValueError("a table of relative positions is not one by the offset of key and query")
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % 8))


def _skewed(products: Tensor, side: int) -> Tensor:
    """[…, side, L] → [N, side, side]: of row i what begins at side − 1 − i."""
    long = products.shape[-1]
    flat = F.view(products, (-1, side * long))
    # From there on, rows that are one shorter begin one earlier each.
    flat = F.slice(flat, (0, side - 1), (-1, side * (long - 1)))
    return F.slice(F.view(flat, (-1, side, long - 1)), (0, 0, 0), (-1, -1, side))


def _places(height: int, width: int, channels: int, extra: int) -> torch.Tensor:
    """[H·W, channels + H + W + extra]: of each key a one in the column of its row, and a one in
    that of its column."""
    row = torch.eye(height).repeat_interleave(width, 0)
    column = torch.eye(width).repeat(height, 1)
    return torch.nn.functional.pad(torch.cat([row, column], 1), (channels, extra))

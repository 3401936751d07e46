"""What the tuned and stressed kernels must compute, in float64, from Meta's definitions."""

import torch
from torch import Tensor


def attention_reference(qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, heads: int) -> Tensor:
    """``Attention.forward`` without its linears, head by head: qkv [B, H, W, 3 * heads * D]."""
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * heads)
    grid = qkv.reshape(batch, height * width, 3, heads, dim)
    out = qkv.new_empty(batch, height * width, heads, dim, dtype=torch.float64)
    y = torch.arange(height, device=qkv.device)
    x = torch.arange(width, device=qkv.device)
    table_h = rel_pos_h.double()[y[:, None] - y + height - 1]
    table_w = rel_pos_w.double()[x[:, None] - x + width - 1]
    for head in range(heads):
        q, k, v = (grid[:, :, part, head].double() for part in range(3))
        square = q.reshape(batch, height, width, dim)
        bias_h = torch.einsum("bhwc,hkc->bhwk", square, table_h)
        bias_w = torch.einsum("bhwc,wkc->bhwk", square, table_w)
        scores = (q @ k.transpose(1, 2) * dim**-0.5).reshape(batch, height, width, height, width)
        scores = scores + bias_h[..., :, None] + bias_w[..., None, :]
        weights = scores.reshape(batch, height * width, height * width).softmax(-1)
        out[:, :, head] = weights @ v
    return out.reshape(batch, height, width, heads * dim)


def window_reference(
    qkv: Tensor, bias: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, window: int, heads: int
) -> Tensor:
    """Within windows; what lies beyond the grid is the qkv bias."""
    batch, height, width, channels = qkv.shape
    rows, columns = -(-height // window), -(-width // window)
    padded = bias.expand(batch, rows * window, columns * window, channels).clone()
    padded[:, :height, :width] = qkv
    windows = padded.reshape(batch, rows, window, columns, window, channels).transpose(2, 3)
    windows = windows.reshape(-1, window, window, channels)
    out = attention_reference(windows, rel_pos_h, rel_pos_w, heads)
    out = out.reshape(batch, rows, columns, window, window, -1).transpose(2, 3)
    return out.reshape(batch, rows * window, columns * window, -1)[:, :height, :width]


def row_statistics(x: Tensor, parts: int) -> Tensor:
    """[parts, rows, 2]: of each row's parts the sum and the sum of squared differences."""
    groups = x.double().reshape(x.shape[0], parts, -1).transpose(0, 1)
    squares = groups.var(2, correction=0) * groups.shape[2]
    return torch.stack((groups.sum(2), squares), 2)

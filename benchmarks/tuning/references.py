"""What the tuned kernels must compute, in fp32 or float64, from Meta's definitions."""

import torch
from torch import Tensor


def attention_reference(qkv, rel_pos_h, rel_pos_w, heads):
    """fp32, head by head: qkv [B, H, W, 3 * heads * D]."""
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * heads)
    grid = qkv.float().view(batch, height * width, 3, heads, dim)
    out = torch.empty(batch, height * width, heads, dim, device=qkv.device)
    y = torch.arange(height, device=qkv.device)
    x = torch.arange(width, device=qkv.device)
    table_h = rel_pos_h.float()[y[:, None] - y + height - 1]
    table_w = rel_pos_w.float()[x[:, None] - x + width - 1]
    for head in range(heads):
        q, k, v = (grid[:, :, part, head] for part in range(3))
        square = q.view(batch, height, width, dim)
        bias_h = torch.einsum("bhwc,hkc->bhwk", square, table_h)
        bias_w = torch.einsum("bhwc,wkc->bhwk", square, table_w)
        scores = (q @ k.transpose(1, 2) * dim**-0.5).view(batch, height, width, height, width)
        scores = scores + bias_h[..., :, None] + bias_w[..., None, :]
        weights = scores.view(batch, height * width, height * width).softmax(-1)
        out[:, :, head] = weights @ v
    return out.view(batch, height, width, heads * dim).double()


def window_reference(qkv, bias, rel_pos_h, rel_pos_w, window, heads):
    batch, height, width, channels = qkv.shape
    pad = -height % window
    tall = height + pad
    padded = bias.expand(batch, tall, tall, channels).clone()
    padded[:, :height, :width] = qkv
    count = tall // window
    windows = padded.view(batch, count, window, count, window, channels).transpose(2, 3)
    windows = windows.reshape(-1, window, window, channels)
    out = attention_reference(windows, rel_pos_h, rel_pos_w, heads)
    out = out.view(batch, count, count, window, window, -1).transpose(2, 3)
    return out.reshape(batch, tall, tall, -1)[:, :height, :width]


def row_statistics(x: Tensor, parts: int) -> Tensor:
    """[parts, rows, 2]: of each row's parts the sum and the sum of squared differences."""
    groups = x.double().view(x.shape[0], parts, -1).transpose(0, 1)
    squares = groups.var(2, correction=0) * groups.shape[2]
    return torch.stack((groups.sum(2), squares), 2)

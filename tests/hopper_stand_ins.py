"""Torch in the place of the kernels for Hopper, on the CPU."""

import torch
import torch.nn.functional as F
from kernel_references import attention_reference, window_reference

from samtrt.kernels.hopper.linear import Linear, LinearTiles


def linear_layer(layer: Linear, tiles: LinearTiles | None = None) -> None:
    parts = len(layer.statistics)
    product = layer.a.double() @ layer.weight.double().t()
    if layer.residual is not None:
        residual = layer.residual.double().repeat(len(layer.out) // len(layer.residual), 1)
        layer.out.copy_(residual + product + layer.bias)
        groups = layer.out.double().view(len(layer.out), parts, -1).transpose(0, 1)
        layer.statistics[..., 0] = groups.sum(2)
        layer.statistics[..., 1] = groups.var(2, correction=0) * groups.shape[2]
        return
    channels = layer.a.shape[1]
    sums, squares = layer.statistics.double().unbind(2)
    size = channels // parts
    mean = sums.sum(0) / channels
    spread = squares.sum(0) + (size * (sums / size - mean) ** 2).sum(0)
    y = product / (spread / channels + layer.eps).sqrt()[:, None] + layer.bias
    layer.out.copy_(F.gelu(y) if layer.gelu else y)


def window_attention(qkv, bias, table, schedule, out, window, heads) -> None:  # type: ignore
    assert schedule.dtype == torch.int32 and table.dtype == qkv.dtype
    length, scale = 2 * window - 1, table.shape[1] ** 0.5
    rel_pos_h = table[:length].flip(0) / scale
    rel_pos_w = table[length + 1 : 2 * length + 1].flip(0) / scale
    out.copy_(window_reference(qkv, bias, rel_pos_h, rel_pos_w, window, heads))


def global_attention(qkv, table_h, table_w, out, heads) -> None:  # type: ignore
    scale = table_h.shape[1] ** 0.5
    out.copy_(attention_reference(qkv, table_h / scale, table_w / scale, heads))

"""Torch in the place of the kernels for Hopper, on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from kernel_references import attention_reference, window_reference
from torch import Tensor

from samtrt.encoders.cuda import hopper
from samtrt.kernels.hopper.linear import ATTENDED_GROUP, Linear, LinearTiles, quantised_order

E4M3 = torch.float8_e4m3fn


def linear_layer(layer: Linear, tiles: LinearTiles | None = None) -> None:
    parts = len(layer.statistics)
    product = layer.a.double() @ layer.weight.double().t()
    if layer.weight_scale is not None:
        product *= layer.weight_scale.double()
    if layer.residual is not None:
        assert layer.out is not None
        residual = layer.residual.double().repeat(len(layer.out) // len(layer.residual), 1)
        y = residual + product + layer.bias
        layer.out.copy_(y)
        groups = layer.out.double().view(len(layer.out), parts, -1).transpose(0, 1)
        layer.statistics[..., 0] = groups.sum(2)
        layer.statistics[..., 1] = groups.var(2, correction=0) * groups.shape[2]
    else:
        channels = layer.a.shape[1]
        sums, squares = layer.statistics.double().unbind(2)
        size = channels // parts
        mean = sums.sum(0) / channels
        spread = squares.sum(0) + (size * (sums / size - mean) ** 2).sum(0)
        y = product / (spread / channels + layer.eps).sqrt()[:, None] + layer.bias
        y = F.gelu(y) if layer.gelu else y
        if layer.out is not None:
            layer.out.copy_(y)
    if layer.quantised is not None:
        assert layer.quantised_scale is not None
        layer.quantised.copy_(rounded(y * layer.quantised_scale))


def rounded(values: Tensor, *group: int) -> Tensor:
    """e4m3 as the kernels write it."""
    return quantised_order(values, *group).clamp(-448, 448).to(E4M3)


def put(out: Tensor, values: Tensor) -> None:
    """Attention's output."""
    if out.dtype == E4M3:
        values = rounded(values.flatten(0, 2), ATTENDED_GROUP).view(out.shape)
    out.copy_(values)


def window_attention(qkv, bias, table, schedule, out, window, heads) -> None:  # type: ignore
    assert schedule.dtype == torch.int32 and table.dtype == qkv.dtype
    length, scale = 2 * window - 1, table.shape[1] ** 0.5
    rel_pos_h = table[:length].flip(0) / scale
    rel_pos_w = table[length + 1 : 2 * length + 1].flip(0) / scale
    put(out, window_reference(qkv, bias, rel_pos_h, rel_pos_w, window, heads))


def global_attention(qkv, table_h, table_w, out, heads) -> None:  # type: ignore
    scale = table_h.shape[1] ** 0.5
    put(out, attention_reference(qkv, table_h / scale, table_w / scale, heads))


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test: of the kernels, which need the GPU."""
    monkeypatch.setattr(hopper, "require_compiler", lambda: None)
    monkeypatch.setattr(hopper, "multiprocessors", lambda _: 132)
    monkeypatch.setattr(hopper, "linear_layer", linear_layer)
    monkeypatch.setattr(hopper.over_window, "window_attention", window_attention)
    monkeypatch.setattr(hopper.over_grid, "global_attention", global_attention)

"""Inputs of the kernels' tests, attention as Meta computes it, in fp64, and a result's error."""

import torch
from triton_kernels import DEVICE

from samtrt.kernels.hopper.linear import quantised_order

# Relative L2 against fp64: a few roundings of the type's unit, 2^-11 and 2^-8.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def random(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int, scale: float = 1.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    assert out.shape == reference.shape
    difference = (out.double() - reference.double()).norm() / reference.double().norm()
    return float(difference)  # NaN compares false with every bound


def assert_e4m3_of(
    out: torch.Tensor, expected: torch.Tensor, tolerance: float, group: int = 32
) -> None:
    """e4m3 in the kernels' order of columns is a rounding of these values, [M, N] float64.

    Half a step of e4m3, 1/16 of a value or 2⁻¹⁰, and six standard deviations, since there are
    millions, of what the values are off by themselves. All together no more than roundings to
    nearest, which are off by 1/38 on average and to no side.

    Args:
        tolerance: what the same kernel's output may be off by where it is fp16, relative L2.
    """
    expected = quantised_order(expected, group)
    size = expected.square().mean().sqrt() + expected.abs()
    expected = expected.clamp(-448, 448)
    difference = out.double() - expected
    off = difference.abs() - expected.abs() / 16 - 2**-10
    assert float((off / size).max()) < 6 * tolerance  # (NaN is not, either)
    assert relative_error(out, expected) < 0.03
    to_one_side = float((difference * expected).sum() / expected.square().sum())
    assert abs(to_one_side) < 2e-3 + 0.2 * expected.numel() ** -0.5


def relative_bias(q: torch.Tensor, table: torch.Tensor, axis: int) -> torch.Tensor:
    """q·R of one axis, q [B, h, H, W, D]: [B, h, H, W, side]; a loop, written independently."""
    side = q.shape[2 + axis]
    out = q.new_zeros(*q.shape[:4], side)
    for i in range(side):
        for j in range(side):
            row = table[i - j + side - 1]
            if axis == 0:
                out[:, :, i, :, j] = q[:, :, i] @ row
            else:
                out[:, :, :, i, j] = q[:, :, :, i] @ row
    return out


def attention_reference(
    qkv: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor, heads: int
) -> torch.Tensor:
    """Meta's Attention.forward without its linears in fp64, qkv [B, H, W, 3 * heads * D]."""
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * heads)
    grid = qkv.double().view(batch, height, width, 3, heads, dim).permute(3, 0, 4, 1, 2, 5)
    q, k, v = grid
    bias = (
        relative_bias(q, rel_pos_h.double(), 0)[..., :, None]
        + relative_bias(q, rel_pos_w.double(), 1)[..., None, :]
    ).flatten(4)
    q, k, v = (t.flatten(2, 3) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * dim**-0.5 + bias.flatten(2, 3)).softmax(-1)
    out = (weights @ v).view(batch, heads, height, width, dim)
    return out.permute(0, 2, 3, 1, 4).reshape(batch, height, width, heads * dim)


def window_reference(
    qkv: torch.Tensor,
    qkv_bias: torch.Tensor,
    rel_pos_h: torch.Tensor,
    rel_pos_w: torch.Tensor,
    window: int,
    heads: int,
) -> torch.Tensor:
    """Windows one by one, padded with the qkv bias."""
    batch, height, width, channels = qkv.shape
    out = qkv.new_zeros(batch, height, width, channels // 3, dtype=torch.float64)
    for y in range(0, height, window):
        for x in range(0, width, window):
            real = qkv[:, y : y + window, x : x + window]
            padded = qkv_bias.expand(batch, window, window, channels).clone()
            padded[:, : real.shape[1], : real.shape[2]] = real
            result = attention_reference(padded, rel_pos_h, rel_pos_w, heads)
            out[:, y : y + window, x : x + window] = result[:, : real.shape[1], : real.shape[2]]
    return out


def row_statistics(x: torch.Tensor, parts: int) -> torch.Tensor:
    """[parts, rows, 2] in fp64, part by part: the sum, and Σ (x - the part's mean)²."""
    columns = x.shape[1] // parts
    out = torch.empty(parts, x.shape[0], 2, dtype=torch.float64, device=x.device)
    for index in range(parts):
        part = x[:, index * columns : (index + 1) * columns].double()
        total = part.sum(1)
        out[index, :, 0] = total
        out[index, :, 1] = (part - total[:, None] / columns).square().sum(1)
    return out

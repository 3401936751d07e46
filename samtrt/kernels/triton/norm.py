"""LayerNorm over the channels of a token, statistics in fp32."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from samtrt.errors import EngineError
from samtrt.kernels.device import launches, multiprocessors


@dataclass(frozen=True)
class NormTiles:
    """Launch options of ``layer_norm``: rows at a time, programs a multiprocessor, warps."""

    block_rows: int = 2
    programs_per_sm: int = 16
    num_warps: int = 1


@triton.jit
def _layer_norm_kernel(
    x_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Program p normalises row blocks p, p + programs, …; the vectors are read once a program.

    A row is two blocks, so that 1280 channels are 1024 + 256 and no lane idles.
    """
    col = tl.arange(0, BLOCK)[None, :]
    tail = BLOCK + tl.arange(0, BLOCK_TAIL)[None, :]
    in_tail = tail < C
    shift = tl.load(shift_ptr + col)
    weight = tl.load(weight_ptr + col)
    bias = tl.load(bias_ptr + col)
    shift_tail = tl.load(shift_ptr + tail, mask=in_tail, other=0.0)
    weight_tail = tl.load(weight_ptr + tail, mask=in_tail, other=0.0)
    bias_tail = tl.load(bias_ptr + tail, mask=in_tail, other=0.0)
    dtype = out_ptr.dtype.element_ty
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
        in_rows = row < rows
        offset = row.to(tl.int64) * C
        x = tl.load(x_ptr + offset + col, mask=in_rows, other=0.0).to(tl.float32) + shift
        mask = in_rows & in_tail
        y = tl.load(x_ptr + offset + tail, mask=mask, other=0.0).to(tl.float32) + shift_tail
        mean = (tl.sum(x, 1, keep_dims=True) + tl.sum(y, 1, keep_dims=True)) / C
        x -= mean
        y = tl.where(in_tail, y - mean, 0.0)
        square = tl.sum(x * x, 1, keep_dims=True) + tl.sum(y * y, 1, keep_dims=True)
        rstd = tl.rsqrt(square / C + eps)
        tl.store(out_ptr + offset + col, (x * rstd * weight + bias).to(dtype), mask=in_rows)
        y = y * rstd * weight_tail + bias_tail
        tl.store(out_ptr + offset + tail, y.to(dtype), mask=mask)


@triton.jit
def _layer_norm_to_nchw_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    tokens,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    image = tl.program_id(1).to(tl.int64)
    col = tl.arange(0, BLOCK_C)
    in_c = col < C
    mask = (token < tokens)[:, None] & in_c[None, :]

    x_ptr += image * tokens * C
    x = tl.load(x_ptr + token[:, None] * C + col[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    centred = tl.where(in_c[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    weight = tl.load(weight_ptr + col, mask=in_c, other=0.0)
    bias = tl.load(bias_ptr + col, mask=in_c, other=0.0)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    out_ptr += image * tokens * C
    tl.store(
        out_ptr + col[:, None] * tokens + token[None, :],
        tl.trans(y).to(out_ptr.dtype.element_ty),
        mask=tl.trans(mask),
    )


@launches
def layer_norm(
    x: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    tiles: NormTiles | None = None,
) -> None:
    """``out = LayerNorm(x + shift)`` over the last dimension; ``norm1``, ``norm2``, ``neck.1``.

    Args:
        x: [rows, C], fp16 or bf16, contiguous.
        shift: [C] fp32, added to every row before the statistics: the linear biases that the
            residual stream has not been given yet (see ``samtrt.encoders.cuda``).
        weight: [C] fp32.
        bias: [C] fp32.
        out: [rows, C], any float type, contiguous.
        eps: added to the variance.
        tiles: the launch configuration.
    """
    rows, channels = x.shape
    tiles = tiles or NormTiles()
    _channel_block(channels)
    block = 1 << (channels.bit_length() - 1)
    programs = triton.cdiv(rows, tiles.block_rows)
    if x.is_cuda:
        programs = min(programs, tiles.programs_per_sm * multiprocessors(x.device))
    _layer_norm_kernel[(programs,)](
        x,
        shift,
        weight,
        bias,
        out,
        rows,
        eps,
        C=channels,
        BLOCK=block,
        BLOCK_TAIL=max(16, triton.next_power_of_2(channels - block)),
        BLOCK_ROWS=tiles.block_rows,
        num_warps=tiles.num_warps,
    )


@launches
def layer_norm_to_nchw(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    *,
    block_rows: int = 32,
    num_warps: int = 8,
) -> None:
    """LayerNorm over C of tokens, stored channels first; ``neck.3``, the encoder's last step.

    Args:
        x: [B, H, W, C], fp16 or bf16, contiguous.
        weight: [C] fp32.
        bias: [C] fp32.
        out: [B, C, H, W], any float type, contiguous.
        eps: added to the variance.
    """
    batch, height, width, channels = x.shape
    tokens = height * width
    _layer_norm_to_nchw_kernel[(triton.cdiv(tokens, block_rows), batch)](
        x,
        weight,
        bias,
        out,
        tokens,
        eps,
        C=channels,
        BLOCK_C=_channel_block(channels),
        BLOCK_ROWS=block_rows,
        num_warps=num_warps,
    )


def _channel_block(channels: int) -> int:
    if channels > 8192:
        raise EngineError(
            f"LayerNorm over {channels} channels is not supported by the cuda backend, which holds "
            "a row in registers: at most 8192; use the tensorrt or cpu backend"
        )
    return triton.next_power_of_2(channels)

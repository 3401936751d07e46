"""LayerNorm over the channels of a token, statistics in fp32."""

import torch
import triton
import triton.language as tl

from samtrt.errors import EngineError


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
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_C)
    in_c = col < C
    mask = (row < rows)[:, None] & in_c[None, :]
    offset = row[:, None].to(tl.int64) * C + col[None, :]

    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(shift_ptr + col, mask=in_c, other=0.0)[None, :]
    mean = tl.sum(x, 1) / C
    centred = tl.where(in_c[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    weight = tl.load(weight_ptr + col, mask=in_c, other=0.0)
    bias = tl.load(bias_ptr + col, mask=in_c, other=0.0)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + offset, y.to(out_ptr.dtype.element_ty), mask=mask)


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


def layer_norm(
    x: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    *,
    block_rows: int = 1,
    num_warps: int = 4,
) -> None:
    """``out = LayerNorm(x + shift)`` over the last dimension; ``norm1``, ``norm2``, ``neck.1``.

    Args:
        x: [rows, C], fp16 or bf16, contiguous.
        shift: [C] fp32, added to every row before the statistics: the linear biases that the
            residual stream has not been given yet (see ``samtrt.fused``).
        weight: [C] fp32.
        bias: [C] fp32.
        out: [rows, C], any float type, contiguous.
        eps: added to the variance.
    """
    rows, channels = x.shape
    _layer_norm_kernel[(triton.cdiv(rows, block_rows),)](
        x,
        shift,
        weight,
        bias,
        out,
        rows,
        eps,
        C=channels,
        BLOCK_C=_channel_block(channels),
        BLOCK_ROWS=block_rows,
        num_warps=num_warps,
    )


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

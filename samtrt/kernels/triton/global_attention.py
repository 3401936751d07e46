"""Attention over the whole token grid with decomposed relative positions.

The bias of query q and key (row j, column i) is rel_h[q, j] + rel_w[q, i]. A key tile is one row of
the grid: rel_w is the same for every tile, so it stays in registers and starts each score tile as
its accumulator, and rel_h is one number a query a tile, added after the row maximum.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from samtrt.errors import EngineError
from samtrt.kernels.device import launches
from samtrt.kernels.triton.launch import Launch
from samtrt.kernels.triton.window_attention import LOG2_E, split_head_dim

MAX_GRID = 128


@dataclass(frozen=True)
class GlobalTiles:
    """Launch options of ``global_attention``.

    Attributes:
        block_m: queries a program.
        num_stages: key tiles in flight.
        tma: whether the copy engine of Hopper and newer fetches the key tiles.
        registers: registers a thread, at most.
    """

    block_m: int = 128
    num_warps: int = 8
    num_stages: int = 3
    registers: int | None = None
    tma: bool = True


@triton.jit
def _relative_positions_kernel(
    qkv_ptr,
    table_h_ptr,
    table_w_ptr,
    height,
    width,
    heads,
    rel_h_ptr,
    rel_w_ptr,
    D: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program: the queries of one grid row (rel_h) or one grid column (rel_w) of a head.

    Those queries share their table rows, so each is a plain product.
    """
    line = tl.program_id(0)
    head = tl.program_id(1)
    image = tl.program_id(2)
    HEAD: tl.constexpr = D + D_TAIL
    tokens = height * width
    row_stride = 3 * heads * HEAD
    along = tl.arange(0, BLOCK)
    is_h = line < height
    place = tl.where(is_h, line, line - height)
    length = tl.where(is_h, width, height)
    side = tl.where(is_h, height, width)
    token = tl.where(is_h, line * width + along, along * width + place)
    is_query = along < length
    token = tl.where(is_query, token, 0)
    # (place - key + side - 1) as Meta's get_rel_pos; keys past the grid read row 0.
    key = tl.arange(0, BLOCK)
    table_row = tl.where(key < side, place - key + side - 1, 0)
    table_ptr = table_h_ptr
    if line >= height:
        table_ptr = table_w_ptr

    dim = tl.arange(0, D)
    q_ptr = qkv_ptr + (image.to(tl.int64) * tokens + token)[:, None] * row_stride + head * HEAD
    r_ptr = table_ptr + table_row[:, None] * HEAD
    products = tl.dot(tl.load(q_ptr + dim[None, :]), tl.trans(tl.load(r_ptr + dim[None, :])))
    if D_TAIL:
        dim = D + tl.arange(0, D_TAIL)
        products = tl.dot(
            tl.load(q_ptr + dim[None, :]), tl.trans(tl.load(r_ptr + dim[None, :])), products
        )
    pair = (image * heads + head).to(tl.int64)
    # (masks in place of a branch: each program stores to one of the two)
    to_h = is_query[:, None] & (key < height)[None, :] & is_h
    tl.store(
        rel_h_ptr + pair * height * tokens + key[None, :] * tokens + token[:, None],
        products,
        mask=to_h,
    )
    # Keys past the row's end get -inf here, so that no score needs a mask later.
    products = tl.where((key < width)[None, :], products, float("-inf"))
    tl.store(
        rel_w_ptr + (pair * tokens + token)[:, None] * BLOCK_W + key[None, :],
        products.to(rel_w_ptr.dtype.element_ty),
        mask=is_query[:, None] & (key < BLOCK_W)[None, :] & (line >= height),
    )


@triton.jit
def _tile(
    desc,
    pointer,
    row,
    column,
    row_stride,
    rows,
    N: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
):
    """Rows ``row``… of the qkv matrix from a column on: [N, D], zeros past its end."""
    if TMA:
        return desc.load([row, column])
    offset = row + tl.arange(0, N)
    pointers = pointer + offset.to(tl.int64)[:, None] * row_stride
    return tl.load(
        pointers + column + tl.arange(0, D)[None, :], mask=(offset < rows)[:, None], other=0.0
    )


@triton.jit
def _global_attention_kernel(
    qkv_desc,
    qkv_tail_desc,
    qkv_ptr,
    rel_h_ptr,
    rel_w_ptr,
    height,
    width,
    heads,
    out_ptr,
    scale_log2e,
    D: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """One program: BLOCK_M queries of one head over all keys, a grid row a step."""
    head = tl.program_id(1)
    image = tl.program_id(2)
    HEAD: tl.constexpr = D + D_TAIL
    tokens = height * width
    row_stride = 3 * heads * HEAD
    q_column = head * HEAD
    k_column = (heads + head) * HEAD
    v_column = (2 * heads + head) * HEAD
    image_row = image * tokens
    rows = tl.num_programs(2) * tokens

    query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = query < tokens
    query = tl.where(is_query, query, 0)
    dim = tl.arange(0, D)
    token = (image_row + query).to(tl.int64)
    q = tl.load(qkv_ptr + token[:, None] * row_stride + q_column + dim[None, :])
    if D_TAIL:
        dim_tail = D + tl.arange(0, D_TAIL)
        q_tail = tl.load(qkv_ptr + token[:, None] * row_stride + q_column + dim_tail[None, :])
    pair = (image * heads + head).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    rel_w = tl.load(rel_w_ptr + (pair * tokens + query)[:, None] * BLOCK_N + column[None, :])
    rel_h_ptr += pair * height * tokens + query

    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    acc_tail = tl.zeros((BLOCK_M, D_TAIL if D_TAIL else 16), dtype=tl.float32)
    for key_row in tl.range(0, height):
        first = image_row + key_row * width
        s = tl.dot(
            q,
            _tile(qkv_desc, qkv_ptr, first, k_column, row_stride, rows, BLOCK_N, D, TMA).T,
            rel_w.to(tl.float32),
        )
        if D_TAIL:
            s = tl.dot(
                q_tail,
                _tile(
                    qkv_tail_desc,
                    qkv_ptr,
                    first,
                    k_column + D,
                    row_stride,
                    rows,
                    BLOCK_N,
                    D_TAIL,
                    TMA,
                ).T,
                s,
            )
        rel_h = tl.load(rel_h_ptr + key_row * tokens) * scale_log2e
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2e + rel_h)

        rescale = tl.exp2(top - new_top)
        top = new_top
        p = tl.exp2(s * scale_log2e + (rel_h - top)[:, None])
        total = total * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        if D_TAIL:
            acc_tail = acc_tail * rescale[:, None]
        p = p.to(q.dtype)
        acc = tl.dot(
            p, _tile(qkv_desc, qkv_ptr, first, v_column, row_stride, rows, BLOCK_N, D, TMA), acc
        )
        if D_TAIL:
            acc_tail = tl.dot(
                p,
                _tile(
                    qkv_tail_desc,
                    qkv_ptr,
                    first,
                    v_column + D,
                    row_stride,
                    rows,
                    BLOCK_N,
                    D_TAIL,
                    TMA,
                ),
                acc_tail,
            )

    target = out_ptr + token[:, None] * (heads * HEAD) + q_column
    scale = (1.0 / total)[:, None]
    dtype = out_ptr.dtype.element_ty
    tl.store(target + dim[None, :], (acc * scale).to(dtype), mask=is_query[:, None])
    if D_TAIL:
        tl.store(target + dim_tail[None, :], (acc_tail * scale).to(dtype), mask=is_query[:, None])


@launches
def relative_positions(
    qkv: torch.Tensor,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    rel_h: torch.Tensor,
    rel_w: torch.Tensor,
    num_heads: int,
) -> None:
    """``rel_h`` and ``rel_w`` of ``add_decomposed_rel_pos``, for all queries of a global block.

    Args:
        qkv: [B, H, W, 3 * heads * D], fp16 or bf16, contiguous.
        table_h: [2 * H - 1, D], the type of ``qkv``: ``rel_pos_h`` times √D.
        table_w: [2 * W - 1, D], the same of ``rel_pos_w``.
        rel_h: [B, heads, H, H * W] fp32, written: of key row j and query q.
        rel_w: [B, heads, H * W, row_block(W)] fp16, bf16 or fp32, written: of query q and key
            column i; -inf past the last column.
    """
    batch, height, width, channels = qkv.shape
    launch = relative_launch(batch, height, width, num_heads, channels // (3 * num_heads))
    launch(qkv_ptr=qkv, table_h_ptr=table_h, table_w_ptr=table_w, rel_h_ptr=rel_h, rel_w_ptr=rel_w)


def relative_launch(batch: int, height: int, width: int, num_heads: int, head_dim: int) -> Launch:
    """``relative_positions``' launch for a grid of ``height`` × ``width`` tokens."""
    d, d_tail = split_head_dim(head_dim)
    return Launch(
        _relative_positions_kernel,
        (height + width, num_heads, batch),
        sizes={"height": height, "width": width, "heads": num_heads},
        constants={
            "D": d,
            "D_TAIL": d_tail,
            "BLOCK": max(row_block(height), row_block(width)),
            "BLOCK_W": row_block(width),
        },
    )


@launches
def global_attention(
    qkv: torch.Tensor,
    rel_h: torch.Tensor,
    rel_w: torch.Tensor,
    out: torch.Tensor,
    num_heads: int,
    tiles: GlobalTiles,
) -> None:
    """``Attention.forward`` of a global block without its linears.

    Args:
        qkv: [B, H, W, 3 * heads * D], fp16 or bf16, contiguous: ``attn.qkv``.
        rel_h: from ``relative_positions``.
        rel_w: from ``relative_positions``.
        out: [B, H, W, heads * D], the type of ``qkv``, contiguous.
        num_heads: attention heads.
        tiles: the launch configuration.

    Raises:
        EngineError: a grid wider than 128 tokens, or a head dimension two tiles do not cover.
    """
    batch, height, width, channels = qkv.shape
    launch = global_launch(batch, height, width, num_heads, channels // (3 * num_heads), tiles)
    tensors = {"qkv_ptr": qkv, "rel_h_ptr": rel_h, "rel_w_ptr": rel_w, "out_ptr": out}
    if not tiles.tma:
        launch(**tensors)
        return
    flat, sizes = qkv.view(-1, channels), launch.constants
    descriptors = {
        name: TensorDescriptor.from_tensor(flat, [sizes["BLOCK_N"], columns])
        for name, columns in (("qkv_desc", sizes["D"]), ("qkv_tail_desc", sizes["D_TAIL"] or 16))
    }
    launch(**descriptors, **tensors)


def global_launch(
    batch: int, height: int, width: int, num_heads: int, head_dim: int, tiles: GlobalTiles
) -> Launch:
    """``global_attention``'s launch for a grid of ``height`` × ``width`` tokens.

    With ``tiles.tma`` it needs two descriptors of ``qkv`` [B * H * W, 3 * heads * D] beside the
    tensors: ``qkv_desc`` of blocks [BLOCK_N, D], ``qkv_tail_desc`` of [BLOCK_N, D_TAIL or 16].

    Raises:
        EngineError: see ``global_attention``.
    """
    d, d_tail = split_head_dim(head_dim)
    block_m = min(tiles.block_m, max(64, triton.next_power_of_2(height * width)))
    return Launch(
        _global_attention_kernel,
        (triton.cdiv(height * width, block_m), num_heads, batch),
        sizes={"height": height, "width": width, "heads": num_heads},
        numbers={"scale_log2e": head_dim**-0.5 * LOG2_E},
        constants={
            **({} if tiles.tma else {"qkv_desc": None, "qkv_tail_desc": None}),
            "D": d,
            "D_TAIL": d_tail,
            "BLOCK_M": block_m,
            "BLOCK_N": row_block(width),
            "TMA": tiles.tma,
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        registers=tiles.registers,
    )


def row_block(width: int) -> int:
    """Columns of a key tile: one grid row, rounded up to a power of two of at least 16.

    Raises:
        EngineError: more than 128 tokens a row.
    """
    if width > MAX_GRID:
        raise EngineError(
            f"a grid of {width} tokens a row is not supported by the cuda backend: at most "
            f"{MAX_GRID} (2048 pixels); use a smaller image or the tensorrt or cpu backend"
        )
    return max(16, triton.next_power_of_2(width))

"""Window attention straight from the qkv tensor.

Partition, padding, relative positions and unpartition (from ``window_partition`` to
``window_unpartition`` in segment_anything/modeling/image_encoder.py) are index arithmetic here; no
intermediate exists in memory. A padded token enters Meta's block as zeros after ``norm1``, so its
key and value are the qkv bias and it takes part in the softmax; as a query it is dropped, so it is
not computed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from samtrt.errors import EngineError
from samtrt.kernels.device import launches
from samtrt.kernels.triton.launch import Launch

# Half the columns of the relative position product: the largest window side.
MAX_WINDOW = 16
TABLE_ROWS = 2 * MAX_WINDOW


@dataclass(frozen=True)
class WindowTiles:
    """Launch options of ``window_attention``.

    Attributes:
        block_m: queries a program.
        block_n: keys a step, a divisor of 256.
        num_stages: key tiles in flight.
        registers: registers a thread, at most.
    """

    block_m: int = 64
    num_warps: int = 4
    block_n: int = 64
    num_stages: int = 2
    registers: int | None = None


@triton.jit
def _window_attention_kernel(
    qkv_ptr,
    bias_ptr,
    table_ptr,
    places_ptr,
    height,
    width,
    windows_y,
    windows_x,
    heads,
    out_ptr,
    scale_log2e,
    WINDOW: tl.constexpr,
    D: tl.constexpr,
    D_TAIL: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_M queries of one head of one window, over all of the window's keys."""
    head = tl.program_id(1)
    window = tl.program_id(2)
    window_x = (window % windows_x) * WINDOW
    window_y = (window // windows_x % windows_y) * WINDOW
    image_row = (window // (windows_x * windows_y)) * height * width

    # Queries are counted over the window's part inside the grid.
    inner_w = min(WINDOW, width - window_x)
    inner_h = min(WINDOW, height - window_y)
    first_query = tl.program_id(0) * BLOCK_M
    if first_query >= inner_w * inner_h:
        return
    query = first_query + tl.arange(0, BLOCK_M)
    is_query = query < inner_w * inner_h
    query_y = tl.where(is_query, query // inner_w, 0)
    query_x = tl.where(is_query, query % inner_w, 0)
    token = (image_row + (window_y + query_y) * width + window_x + query_x).to(tl.int64)

    HEAD: tl.constexpr = D + D_TAIL
    KEYS: tl.constexpr = WINDOW * WINDOW
    row_stride = 3 * heads * HEAD
    q_column = head * HEAD
    k_column = (heads + head) * HEAD
    v_column = (2 * heads + head) * HEAD
    dim = tl.arange(0, D)
    dim_tail = D + tl.arange(0, D_TAIL if D_TAIL else 16)
    q_ptr = qkv_ptr + token[:, None] * row_stride + q_column
    table_row = tl.arange(0, 4 * HALF)
    q = tl.load(q_ptr + dim[None, :])
    table = tl.load(table_ptr + table_row[:, None] * HEAD + dim[None, :])
    products = tl.dot(q, tl.trans(table))
    if D_TAIL:
        q_tail = tl.load(q_ptr + dim_tail[None, :])
        table_tail = tl.load(table_ptr + table_row[:, None] * HEAD + dim_tail[None, :])
        products = tl.dot(q_tail, tl.trans(table_tail), products)
    # From products with every table row to the rows of this query: rel_h in the first HALF
    # columns (key row j), rel_w in the others (key column j).
    slot = tl.arange(0, 2 * HALF)
    is_h = (slot < HALF)[None, :]
    position = tl.where(is_h, query_y[:, None], query_x[:, None])
    distance = position - (slot % HALF)[None, :] + (WINDOW - 1)
    distance = tl.minimum(tl.maximum(distance, 0), 2 * HALF - 1)
    index = tl.where(is_h, 0, 2 * HALF) + distance
    relative = tl.gather(products, index, 1).to(q.dtype)

    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    acc_tail = tl.zeros((BLOCK_M, D_TAIL if D_TAIL else 16), dtype=tl.float32)
    for first in tl.range(0, KEYS, BLOCK_N, num_stages=STAGES):
        key = first + tl.arange(0, BLOCK_N)
        y = window_y + key // WINDOW
        x = window_x + key % WINDOW
        inside = (y < height) & (x < width) & (key < KEYS)
        # One row of biases stands for every padded token.
        key_token = tl.where(inside, image_row + y * width + x, 0).to(tl.int64)
        row = tl.where(inside, qkv_ptr + key_token * row_stride, bias_ptr)[:, None]

        s = tl.dot(q, tl.trans(tl.load(row + (k_column + dim)[None, :])))
        if D_TAIL:
            k_tail = tl.load(row + (k_column + dim_tail)[None, :])
            s = tl.dot(q_tail, tl.trans(k_tail), s)
        # Adding rel_h[q, key row] + rel_w[q, key column] is a product with two ones a key.
        places = tl.load(places_ptr + key[:, None] * (2 * HALF) + slot[None, :])
        s = tl.dot(relative, tl.trans(places), s)
        if KEYS % BLOCK_N:
            s = tl.where((key < KEYS)[None, :], s, float("-inf"))

        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2e)
        rescale = tl.exp2(top - new_top)
        top = new_top
        p = tl.exp2(s * scale_log2e - top[:, None])
        total = total * rescale + tl.sum(p, 1)
        p = p.to(q.dtype)
        acc = tl.dot(p, tl.load(row + (v_column + dim)[None, :]), acc * rescale[:, None])
        if D_TAIL:
            v_tail = tl.load(row + (v_column + dim_tail)[None, :])
            acc_tail = tl.dot(p, v_tail, acc_tail * rescale[:, None])

    scale = (1.0 / total)[:, None]
    dtype = out_ptr.dtype.element_ty
    target = out_ptr + token[:, None] * (heads * HEAD) + q_column
    tl.store(target + dim[None, :], (acc * scale).to(dtype), mask=is_query[:, None])
    if D_TAIL:
        tl.store(target + dim_tail[None, :], (acc_tail * scale).to(dtype), mask=is_query[:, None])


@launches
def window_attention(
    qkv: torch.Tensor,
    qkv_bias: torch.Tensor,
    table: torch.Tensor,
    places: torch.Tensor,
    out: torch.Tensor,
    window_size: int,
    num_heads: int,
    tiles: WindowTiles,
) -> None:
    """``window_partition``, ``Attention.forward`` without its linears, ``window_unpartition``.

    Args:
        qkv: [B, H, W, 3 * heads * D], fp16 or bf16, contiguous: ``attn.qkv`` of the real tokens.
        qkv_bias: [3 * heads * D], the type of ``qkv``: what a padded token's row would be.
        table: ``window_table(rel_pos_h, rel_pos_w, window_size)``, the type of ``qkv``.
        places: ``window_places(window_size)``, the type of ``qkv``.
        out: [B, H, W, heads * D], the type of ``qkv``, contiguous.
        window_size: side of a window, in tokens.
        num_heads: attention heads.
        tiles: the launch configuration.

    Raises:
        EngineError: a window side above 16, or a head dimension that two tiles do not cover.
    """
    batch, height, width, channels = qkv.shape
    head_dim = channels // (3 * num_heads)
    launch = window_launch(batch, height, width, window_size, num_heads, head_dim, tiles)
    launch(qkv_ptr=qkv, bias_ptr=qkv_bias, table_ptr=table, places_ptr=places, out_ptr=out)


def window_launch(
    batch: int,
    height: int,
    width: int,
    window_size: int,
    num_heads: int,
    head_dim: int,
    tiles: WindowTiles,
) -> Launch:
    """``window_attention``'s launch for a grid of ``height`` × ``width`` tokens.

    Raises:
        EngineError: a head dimension that two tiles do not cover.
    """
    d, d_tail = split_head_dim(head_dim)
    windows_y = triton.cdiv(height, window_size)
    windows_x = triton.cdiv(width, window_size)
    queries = min(window_size, height) * min(window_size, width)
    block_m = min(tiles.block_m, max(64, triton.next_power_of_2(queries)))
    return Launch(
        _window_attention_kernel,
        (triton.cdiv(queries, block_m), num_heads, batch * windows_y * windows_x),
        sizes={
            "height": height,
            "width": width,
            "windows_y": windows_y,
            "windows_x": windows_x,
            "heads": num_heads,
        },
        numbers={"scale_log2e": head_dim**-0.5 * LOG2_E},
        constants={
            "WINDOW": window_size,
            "D": d,
            "D_TAIL": d_tail,
            "HALF": MAX_WINDOW,
            "BLOCK_M": block_m,
            "BLOCK_N": tiles.block_n,
            "STAGES": tiles.num_stages,
        },
        num_warps=tiles.num_warps,
        registers=tiles.registers,
    )


LOG2_E = 1.4426950408889634


def window_table(
    rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor, window_size: int
) -> torch.Tensor:
    """The two tables of a window block as one: [64, D].

    Rows 0…31 hold ``rel_pos_h``, rows 32…63 ``rel_pos_w`` (each [2 * window_size - 1, D]), the
    rest zeros. Meta adds the unscaled q·R to the scaled q·kᵀ; the kernel scales the sum, so the
    tables carry the inverse factor √D.
    """
    head_dim = rel_pos_h.shape[1]
    table = rel_pos_h.new_zeros(2 * TABLE_ROWS, head_dim)
    table[: 2 * window_size - 1] = rel_pos_h * head_dim**0.5
    table[TABLE_ROWS : TABLE_ROWS + 2 * window_size - 1] = rel_pos_w * head_dim**0.5
    return table


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """A head dimension as one or two powers of two of at least 16: 80 is (64, 16), 64 (64, 0).

    Raises:
        EngineError: it takes more than two.
    """
    first = 1 << (head_dim.bit_length() - 1)
    rest = head_dim - first
    if head_dim > 128 or first < 16 or (rest and (rest < 16 or rest & (rest - 1))):
        raise EngineError(
            f"head dimension {head_dim} is not supported by the cuda backend: it must be the sum "
            "of one or two powers of two from 16 to 128; use the tensorrt or cpu backend"
        )
    return first, rest


def window_places(window_size: int) -> torch.Tensor:
    """Where each key of a window is: [256, 32], a one at its row and one at 16 + its column.

    fp32, on the CPU.

    Raises:
        EngineError: a window side above 16.
    """
    if not 0 < window_size <= MAX_WINDOW:
        raise EngineError(
            f"window size {window_size} is not supported by the cuda backend: 1 to {MAX_WINDOW} "
            "tokens; use the tensorrt or cpu backend"
        )
    places = torch.zeros(MAX_WINDOW * MAX_WINDOW, TABLE_ROWS, dtype=torch.float32, device="cpu")
    key = torch.arange(window_size * window_size, device="cpu")
    places[key, key // window_size] = 1
    places[key, MAX_WINDOW + key % window_size] = 1
    return places

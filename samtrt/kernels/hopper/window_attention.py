"""Window attention on Hopper's own units; see window_attention.cu.

The counterpart of ``samtrt.kernels.triton.window_attention``, whose semantics it shares.
"""

import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.launch import Launch, TensorMap, launch

MIN_WINDOW, MAX_WINDOW = 6, 14
HEAD_DIMS = (64, 80)
HEADERS = (
    "window_layout.cuh",
    "window_memory.cuh",
    "window_tile.cuh",
    "window_few.cuh",
)
LOG2_E = 1.4426950408889634

THREADS = 384
TILE = 64  # queries
FEW = 8  # queries beyond whole tiles that are no tile of their own
# What a tile of queries takes and what a unit takes beside its tiles, relative to each other.
TILE_WORK, UNIT_WORK = 4, 1
_Work = tuple[int, tuple[int, int, int, int]]  # of a unit, and its entry in the schedule
# Dynamic shared memory: all that a block may have.
SHARED_BYTES = 227 * 1024


def supports(head_dim: int, window_size: int) -> bool:
    """Whether there is a kernel for heads of this size and windows of this side."""
    return head_dim in HEAD_DIMS and MIN_WINDOW <= window_size <= MAX_WINDOW


def _check(head_dim: int, window_size: int) -> None:
    if not supports(head_dim, window_size):
        raise EngineError(
            f"Hopper's window attention has no kernel for windows of {window_size} tokens and "
            f"heads of {head_dim} columns: {MIN_WINDOW} to {MAX_WINDOW} tokens and heads of "
            f"{' or '.join(map(str, HEAD_DIMS))} are supported; use the Triton kernel"
        )


def window_attention_program(
    head_dim: int, window_size: int, dtype: torch.dtype, fp8_output: bool = False
) -> Program:
    """The kernel for heads of this size and windows of this side.

    Raises:
        EngineError: there is none, see ``supports``.
    """
    _check(head_dim, window_size)
    constants = (
        ("HEAD_DIM", head_dim),
        ("WINDOW", window_size),
        ("FP8_OUTPUT", int(fp8_output)),
    )
    return Program("window_attention.cu", constants, tuple(range(8, 129, 8)), dtype, HEADERS)


def window_table(rel_pos_h: Tensor, rel_pos_w: Tensor, window_size: int) -> Tensor:
    """The two tables of a window block as the kernel reads them: [4 * window_size (to 8), D].

    ``rel_pos_h`` and ``rel_pos_w`` (each [2 * window_size - 1, D]) from the last row to the first,
    then a row of zeros each: the rows that a query meets then ascend with the key's row or column.
    Meta adds the unscaled q·R to the scaled q·kᵀ; the kernel scales the sum, so the tables carry
    the inverse factor √D.

    Raises:
        EngineError: there is no kernel for these sizes, see ``supports``.
    """
    head_dim = rel_pos_h.shape[1]
    _check(head_dim, window_size)
    length = 2 * window_size - 1
    table = rel_pos_h.new_zeros((4 * window_size + 7) // 8 * 8, head_dim)
    table[:length] = rel_pos_h.flip(0) * head_dim**0.5
    table[length + 1 : 2 * length + 1] = rel_pos_w.flip(0) * head_dim**0.5
    return table


def window_schedule(
    batch: int, height: int, width: int, window_size: int, num_heads: int, blocks: int
) -> Tensor:
    """Which heads of which windows each block works on: [blocks, units, 4], int32.

    A unit is (first column, first row, image, head). The blocks' work is as even as handing out the
    longest first and then exchanging units in pairs makes it. A block does its shortest first (the
    other way round it takes 7 % longer); lists that are shorter end with heads of -1.

    Args:
        batch, height, width: the grid.
        blocks: at most as many as run at once; fewer where there are fewer units.
    """
    units: list[_Work] = []
    for y in range(0, height, window_size):
        for x in range(0, width, window_size):
            queries = min(window_size, height - y) * min(window_size, width - x)
            work = TILE_WORK * ((queries + TILE - 1 - FEW) // TILE) + UNIT_WORK
            units += [
                (work, (x, y, image, head)) for image in range(batch) for head in range(num_heads)
            ]
    lists = _share(units, min(blocks, len(units)))
    schedule = torch.zeros(len(lists), max(map(len, lists)), 4, dtype=torch.int32, device="cpu")
    schedule[..., 3] = -1
    for block, share in enumerate(lists):
        entries = [entry for _, entry in sorted(share, key=lambda unit: unit[0])]
        schedule[block, : len(entries)] = torch.tensor(entries, dtype=torch.int32, device="cpu")
    return schedule


def _share(units: list[_Work], blocks: int) -> list[list[_Work]]:
    """Units for each block, with the largest sum of work small."""
    lists: list[list[_Work]] = [[] for _ in range(blocks)]
    loads = [0] * blocks
    for unit in sorted(units, key=lambda unit: -unit[0]):
        block = loads.index(min(loads))
        lists[block].append(unit)
        loads[block] += unit[0]
    while True:
        heavy = loads.index(max(loads))
        for other in range(blocks):
            exchange = _exchange(lists[heavy], lists[other], loads[heavy], loads[other])
            if exchange is not None:
                break
        else:
            return lists
        give, take = exchange
        lists[heavy].remove(give)
        lists[other].append(give)
        if take is not None:
            lists[other].remove(take)
            lists[heavy].append(take)
        moved = give[0] - (take[0] if take else 0)
        loads[heavy] -= moved
        loads[other] += moved


def _exchange(
    heavy: list[_Work], other: list[_Work], heavy_load: int, other_load: int
) -> tuple[_Work, _Work | None] | None:
    """A unit to give to the other block, and one or none to take, so that both have less work."""
    gives = {unit[0]: unit for unit in heavy}.values()  # one of each size will do
    takes = [None, *{unit[0]: unit for unit in other}.values()]
    for give in gives:
        for take in takes:
            moved = give[0] - (take[0] if take else 0)
            if 0 < moved < heavy_load - other_load:
                return give, take
    return None


def window_attention(
    qkv: Tensor,
    qkv_bias: Tensor,
    table: Tensor,
    schedule: Tensor,
    out: Tensor,
    window_size: int,
    num_heads: int,
) -> None:
    """``window_partition``, ``Attention.forward`` without its linears, ``window_unpartition``.

    Of ``segment_anything/modeling/image_encoder.py``; one launch.

    Args:
        qkv: [B, H, W, 3 * heads * D], fp16 or bf16, a token's channels contiguous, 16-byte aligned:
            ``attn.qkv`` of the real tokens.
        qkv_bias: [3 * heads * D], the type of ``qkv``: what a padded token's row would be.
        table: ``window_table(rel_pos_h, rel_pos_w, window_size)``, the type of ``qkv``.
        schedule: ``window_schedule`` of these sizes, on the GPU; a parameter, like ``qkv_bias`` and
            ``table``: no kernel on the stream may still write it.
        out: [B, H, W, heads * D], the type of ``qkv`` or e4m3, contiguous; e4m3 with its columns
            in ``quantised_order`` of 16.
        window_size: side of a window, in tokens.
        num_heads: attention heads.

    Raises:
        EngineError: there is no kernel for these sizes, see ``supports``; or the driver refuses.
    """
    work = window_launch(qkv, qkv_bias, table, schedule, out, window_size, num_heads)
    launch(work, qkv.device)


def window_launch(
    qkv: Tensor,
    qkv_bias: Tensor,
    table: Tensor,
    schedule: Tensor,
    out: Tensor,
    window_size: int,
    num_heads: int,
) -> Launch:
    """How ``window_attention``, which has the same arguments, is launched."""
    _, height, width, channels = qkv.shape
    head_dim = channels // (3 * num_heads)
    is_fp8 = out.dtype == torch.float8_e4m3fn
    program = window_attention_program(head_dim, window_size, qkv.dtype, is_fp8)
    # A window that the right side of the grid cuts has its queries and outputs packed closely.
    cut = width % window_size or window_size
    maps = [
        _boxes(tensor, columns, side, window_size)
        for tensor in (qkv, qkv if is_fp8 else out)  # (e4m3 goes straight to memory)
        for side in (window_size, cut)
        for columns in (64, head_dim - 64 or 64)
    ]
    blocks, units, _ = schedule.shape
    scale = head_dim**-0.5 * LOG2_E
    arguments = (*maps, qkv_bias, table, schedule, units, height, width, num_heads, scale, out)
    return Launch(program, (blocks, 1, 1), THREADS, SHARED_BYTES, arguments)


def _boxes(tensor: Tensor, columns: int, box_width: int, box_height: int) -> TensorMap:
    batch, height, width, channels = tensor.shape
    return TensorMap(
        tensor,
        (channels, width, height, batch),
        tensor.stride()[2::-1],
        (columns, box_width, box_height, 1),
    )

"""Attention over the whole token grid on Hopper's own units; see global_attention.cu.

The counterpart of ``samtrt.kernels.global_attention``; relative positions are part of the kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper.program import (
    Program,
    TensorMap,
    launch,
    matrix_map,
    resident_clusters,
)

TILE = 64  # tokens of a grid row, with padding; global_attention.cu
CONSUMERS = 2  # warpgroups that multiply, a grid row of queries each
THREADS = (CONSUMERS + 1) * 128
STAGES = 4  # tiles of keys, and of values, in flight
HEAD_DIMS = (64, 80)
TABLE_ROWS = 2 * TILE
PITCH = TABLE_ROWS + 4
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class GlobalTiles:
    """How the kernel fetches.

    Attributes:
        cluster: blocks that share the keys and values they fetch, 1 or 2.
    """

    cluster: int = 2

    def shared_bytes(self, head_dim: int) -> int:
        """Shared memory of a block."""
        rows = 2 * TABLE_ROWS + (CONSUMERS + 2 * STAGES) * TILE
        barriers = 8 * (1 + 2 * CONSUMERS + 4 * STAGES)
        return 2 * rows * head_dim + 4 * CONSUMERS * TILE * PITCH + barriers + 1024  # to align

    def program(self, head_dim: int, dtype: torch.dtype) -> Program:
        """The kernel for one head dimension (64 or 80) and type (fp16 or bf16)."""
        constants = (("HEAD_DIM", head_dim), ("CLUSTER", self.cluster))
        widths = tuple(sorted({TILE, TILE + 8, TABLE_ROWS, head_dim}))
        return Program("global_attention.cu", constants, widths, dtype, ("attention.cuh",))


def supports(height: int, width: int, head_dim: int) -> bool:
    """Whether a token grid and head dimension fit the kernel.

    Rows are padded to 64 tokens, so a narrow grid is served but wastes the padding squared.
    """
    rows = height % STAGES == 0 and 1 <= height <= TILE
    return rows and 1 <= width <= TILE and head_dim in HEAD_DIMS


def global_attention(
    qkv: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    out: Tensor,
    num_heads: int,
    tiles: GlobalTiles | None = None,
) -> None:
    """``Attention.forward`` of a global block without its linears; one launch.

    Of ``segment_anything/modeling/image_encoder.py``.

    Args:
        qkv: [B, H, W, 3 * heads * D], fp16 or bf16, a token's channels contiguous, 16-byte aligned:
            ``attn.qkv``.
        table_h: [2 * H - 1, D], the type of ``qkv``, contiguous: ``rel_pos_h`` times √D.
        table_w: [2 * W - 1, D], the same of ``rel_pos_w``. No kernel on the stream may still write
            the tables.
        out: [B, H, W, heads * D], the type of ``qkv``, contiguous, written.
        num_heads: attention heads.
        tiles: the launch configuration.

    Raises:
        EngineError: there is no kernel for these sizes, see ``supports``; or the driver refuses.
    """
    batch, height, width, channels = qkv.shape
    head_dim = channels // (3 * num_heads)
    if not supports(height, width, head_dim):
        raise EngineError(
            f"global attention over {height} × {width} tokens with heads of {head_dim} channels "
            f"is not supported by the Hopper kernel: at most {TILE} × {TILE}, a height that is a "
            f"multiple of {STAGES} and one of {HEAD_DIMS}; use samtrt.kernels.global_attention"
        )
    tiles = tiles or GlobalTiles()
    program, shared_bytes = tiles.program(head_dim, qkv.dtype), tiles.shared_bytes(head_dim)
    tail = 16 if head_dim > 64 else 64  # unused with heads of 64
    sizes = (channels, width, height, batch)
    strides = qkv.stride()[2::-1]
    value_blocks = TensorMap(
        qkv,
        (16, width, height * batch, channels // 16),
        (*strides[:2], 16),
        (16, TILE, 1, head_dim // 16),
    )
    blocks = multiprocessors(qkv.device)
    if tiles.cluster > 1:
        device = qkv.device.index or 0
        blocks = tiles.cluster * resident_clusters(
            program, device, THREADS, shared_bytes, tiles.cluster
        )
    items = batch * num_heads * height // (tiles.cluster * CONSUMERS)
    launch(
        program,
        (min(blocks, items * tiles.cluster), 1, 1),
        THREADS,
        shared_bytes,
        [
            TensorMap(qkv, sizes, strides, (64, TILE, 1, 1)),
            TensorMap(qkv, sizes, strides, (tail, TILE, 1, 1)),
            value_blocks,
            matrix_map(table_h, TABLE_ROWS, 64),
            matrix_map(table_h, TABLE_ROWS, tail),
            matrix_map(table_w, TABLE_ROWS, 64),
            matrix_map(table_w, TABLE_ROWS, tail),
            out,
            batch,
            height,
            width,
            num_heads,
            head_dim**-0.5 * LOG2_E,
        ],
        cluster=tiles.cluster,
    )

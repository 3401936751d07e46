"""Attention over the whole token grid on Hopper's own units; see global_attention.cu.

The counterpart of ``samtrt.kernels.triton.global_attention``; relative positions are part of the
kernel.
"""

import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.launch import Launch, TensorMap, launch, matrix_map

TILE = 64  # tokens of a grid row, with padding; global_attention.cu
CONSUMERS = 3  # warpgroups that multiply, a grid row of queries each at a time
THREADS = (CONSUMERS + 1) * 128
STAGES = 4  # tiles of keys, and of values, in flight
HEAD_DIMS = (64, 80)
TABLE_ROWS = 2 * TILE
PITCH = TILE + 20
LOG2_E = 1.4426950408889634


def shared_bytes(head_dim: int) -> int:
    """Shared memory of a block."""
    rows = 2 * TABLE_ROWS + (CONSUMERS + 2 * STAGES) * TILE
    barriers = 8 * (1 + 2 * CONSUMERS + 4 * STAGES)
    return 2 * rows * head_dim + 4 * CONSUMERS * TILE * PITCH + barriers


def global_attention_program(
    head_dim: int, dtype: torch.dtype, fp8_output: bool = False
) -> Program:
    """The kernel for one head dimension (64 or 80) and type (fp16 or bf16)."""
    widths = tuple(sorted({TILE, TILE + 8, head_dim}))
    constants = (("HEAD_DIM", head_dim), ("FP8_OUTPUT", int(fp8_output)))
    return Program("global_attention.cu", constants, widths, dtype)


def chunk_rows(height: int, heads: int, blocks: int) -> int:
    """How many grid rows of a head's queries a block takes at a time.

    The busiest block has the fewest rounds over all keys, a row each warpgroup a round. Among
    equals it has the fewest rows, then the fewest chunks: these read fewer keys.

    Args:
        height: grid rows of a head.
        heads: of all images.
        blocks: as many as run at once.
    """

    def cost(rows: int) -> tuple[int, int, int]:
        chunks = _ceil_div(heads * _ceil_div(height, rows), blocks)  # of the busiest block
        return chunks * _ceil_div(rows, CONSUMERS), chunks * rows, chunks

    return min(range(1, height + 1), key=cost)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def supports(height: int, width: int, head_dim: int) -> bool:
    """Whether a token grid and head dimension fit the kernel.

    Rows are padded to 64 tokens, so a narrow grid is served but wastes the padding squared.
    """
    return 1 <= height <= TILE and 1 <= width <= TILE and head_dim in HEAD_DIMS


def global_attention(
    qkv: Tensor, table_h: Tensor, table_w: Tensor, out: Tensor, num_heads: int
) -> None:
    """``Attention.forward`` of a global block without its linears; one launch.

    Of ``segment_anything/modeling/image_encoder.py``.

    Args:
        qkv: [B, H, W, 3 * heads * D], fp16 or bf16, a token's channels contiguous, 16-byte aligned:
            ``attn.qkv``.
        table_h: [2 * H - 1, D], the type of ``qkv``, contiguous: ``rel_pos_h`` times √D.
        table_w: [2 * W - 1, D], the same of ``rel_pos_w``. No kernel on the stream may still write
            the tables.
        out: [B, H, W, heads * D], the type of ``qkv`` or e4m3, contiguous, written; e4m3 with its
            columns in ``quantised_order`` of 16.
        num_heads: attention heads.

    Raises:
        EngineError: there is no kernel for these sizes, see ``supports``; or the driver refuses.
    """
    work = global_launch(qkv, table_h, table_w, out, num_heads, multiprocessors(qkv.device))
    launch(work, qkv.device)


def global_launch(
    qkv: Tensor, table_h: Tensor, table_w: Tensor, out: Tensor, num_heads: int, processors: int
) -> Launch:
    """How ``global_attention``, which has the same arguments, is launched.

    Args:
        processors: multiprocessors of the GPU.
    """
    batch, height, width, channels = qkv.shape
    head_dim = channels // (3 * num_heads)
    if not supports(height, width, head_dim):
        raise EngineError(
            f"global attention over {height} × {width} tokens with heads of {head_dim} channels "
            f"is not supported by the Hopper kernel: at most {TILE} × {TILE} tokens and "
            f"heads of one of {HEAD_DIMS}; use samtrt.kernels.triton.global_attention"
        )
    tail = 16 if head_dim > 64 else 64  # unused with heads of 64
    sizes = (channels, width, height, batch)
    strides = qkv.stride()[2::-1]
    value_blocks = TensorMap(
        qkv,
        (16, width, height * batch, channels // 16),
        (*strides[:2], 16),
        (16, TILE, 1, head_dim // 16),
    )
    rows = chunk_rows(height, batch * num_heads, processors)
    parts = _ceil_div(height, rows)
    chunks = batch * num_heads * parts
    return Launch(
        global_attention_program(head_dim, qkv.dtype, out.dtype == torch.float8_e4m3fn),
        (min(processors, chunks), 1, 1),
        THREADS,
        shared_bytes(head_dim),
        (
            TensorMap(qkv, sizes, strides, (64, TILE, 1, 1)),
            TensorMap(qkv, sizes, strides, (tail, TILE, 1, 1)),
            value_blocks,
            matrix_map(table_h, TABLE_ROWS, 64),
            matrix_map(table_h, TABLE_ROWS, tail),
            matrix_map(table_w, TABLE_ROWS, 64),
            matrix_map(table_w, TABLE_ROWS, tail),
            out,
            chunks,
            parts,
            rows,
            height,
            width,
            num_heads,
            head_dim**-0.5 * LOG2_E,
        ),
    )

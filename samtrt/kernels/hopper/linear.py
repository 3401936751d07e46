"""Linear layers with the LayerNorm before them, or the residual sum after them, inside."""

from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper.program import Program, launch, matrix_map, resident_clusters

BLOCK_K = 64
NORMALISED, NORMALISED_GELU, RESIDUAL = range(3)  # linear.cu, Epilogue


@dataclass(frozen=True)
class LinearTiles:
    """How a product is cut into tiles.

    Attributes:
        rows: of a tile and warpgroup, 64 or 128.
        columns: of a tile, a multiple of ``chunk``.
        pingpong: whether the two warpgroups work on different tiles in turn, or on the halves of
            one of twice the rows.
        stages: pairs of operand tiles in flight.
        cluster: blocks that share the weights they fetch, 1 or 2.
        group: row blocks a group of tiles spans, for the L2 cache.
        chunk: columns stored at a time, 32 or 64.
        buffers: chunks in flight a warpgroup.
    """

    rows: int = 128
    columns: int = 160
    pingpong: bool = True
    stages: int = 5
    cluster: int = 1
    group: int = 8
    chunk: int = 32
    buffers: int = 2

    @property
    def block_rows(self) -> int:
        """Rows of a block's tile."""
        return self.rows if self.pingpong else 2 * self.rows

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        stage = (self.block_rows + self.columns) * BLOCK_K * 2
        staging = 2 * self.buffers * self.rows * self.chunk * 2
        return self.stages * (stage + 16) + staging

    def program(self, epilogue: int, dtype: torch.dtype, statistics: int = 1) -> Program:
        constants = {
            "WG_ROWS": self.rows,
            "BLOCK_N": self.columns,
            "PINGPONG": int(self.pingpong),
            "STAGES": self.stages,
            "CLUSTER": self.cluster,
            "GROUP_M": self.group,
            "CHUNK": self.chunk,
            "BUFFERS": self.buffers,
            "EPILOGUE": epilogue,
            "STATISTICS": statistics,
        }
        return Program("linear.cu", tuple(constants.items()), (self.columns,), dtype)


# Of all that fit shared memory, these were the fastest (docs/performance.md).
WIDE = LinearTiles(columns=192, stages=4, chunk=64)
MIDDLE = LinearTiles(columns=160)
NARROW = LinearTiles(columns=128, stages=6)
# Where there is little to hide in the epilogue, two warpgroups on one tall tile.
TALL = LinearTiles(columns=160, pingpong=False, stages=4, buffers=1)
TALL_NARROW = LinearTiles(columns=128, pingpong=False, stages=4)


def normalised_tiles(rows: int, columns: int, processors: int) -> LinearTiles:
    """The tiles that leave the busiest of the multiprocessors the least to do."""
    return min((WIDE, MIDDLE, NARROW), key=lambda t: _busiest(t, rows, columns, processors))


def residual_tiles(rows: int, columns: int, processors: int) -> LinearTiles | None:
    """The same among those that cut the columns into equal parts; None where none do."""
    candidates = [
        tiles for tiles in (TALL, TALL_NARROW, WIDE, MIDDLE, NARROW) if columns % tiles.columns == 0
    ]
    return min(candidates, key=lambda t: _busiest(t, rows, columns, processors), default=None)


def _busiest(tiles: LinearTiles, rows: int, columns: int, processors: int) -> int:
    """Elements that one multiprocessor computes, at most."""
    count = -(-rows // tiles.block_rows) * -(-columns // tiles.columns)
    return -(-count // processors) * tiles.block_rows * tiles.columns


def normalised_linear(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    eps: float,
    gelu: bool,
    tiles: LinearTiles | None = None,
) -> None:
    """``norm1`` and ``attn.qkv``, or ``norm2``, ``mlp.lin1`` and ``mlp.act`` (the erf GELU).

    Args:
        x: [M, C], fp16 or bf16, contiguous: the residual stream, not normalised.
        statistics: [parts, M, 2] fp32, contiguous, of ``x`` (``residual_linear``,
            ``row_statistics``).
        weight: [N, C], the type of ``x``, contiguous: from ``fold_layer_norm``.
        bias: [N] fp32: from ``fold_layer_norm``.
        out: [M, N], the type of ``x``, contiguous.
        eps: the norm's.
        gelu: whether the activation follows.
        tiles: the launch configuration; measured ones by default.

    Raises:
        EngineError: C or N is not a multiple of 8 (the copy engine needs rows of 16 bytes).
    """
    epilogue = NORMALISED_GELU if gelu else NORMALISED
    if tiles is None:
        tiles = normalised_tiles(x.shape[0], weight.shape[0], multiprocessors(x.device))
    _launch(x, weight, bias, out, out, statistics, statistics, eps, epilogue, tiles)


def residual_linear(
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    out: Tensor,
    statistics: Tensor,
    tiles: LinearTiles | None = None,
) -> None:
    """``x + attn.proj(a)`` or ``x + mlp.lin2(a)``, and what the next norm needs to know of it.

    Args:
        a: [M, K], fp16 or bf16, contiguous.
        weight: [N, K], the type of ``a``, contiguous.
        bias: [N] fp32.
        residual: [M or a divisor of it, N], the type of ``a``, contiguous; its rows repeat. May be
            ``out``.
        out: [M, N], the type of ``a``, contiguous.
        statistics: [N / tiles.columns, M, 2] fp32, written: of each row's part, the sum and the
            sum of squared differences from the part's mean.
        tiles: the launch configuration; measured ones by default.

    Raises:
        EngineError: K is not a multiple of 8, or N none of ``tiles.columns``.
    """
    rows, columns = out.shape
    tiles = tiles or residual_tiles(rows, columns, multiprocessors(a.device))
    if tiles is None or columns % tiles.columns or statistics.shape[0] * tiles.columns != columns:
        raise EngineError(
            f"a linear layer onto {columns} channels is not cut into {statistics.shape[0]} equal "
            f"parts by {tiles}"
        )
    _launch(a, weight, bias, residual, out, statistics, statistics, 0.0, RESIDUAL, tiles)


def _launch(
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    out: Tensor,
    statistics: Tensor,
    new_statistics: Tensor,
    eps: float,
    epilogue: int,
    tiles: LinearTiles,
) -> None:
    (rows, inner), columns = a.shape, weight.shape[0]
    if inner % 8 or columns % 8:
        raise EngineError(
            f"a linear layer of {inner} → {columns} channels is not supported by the cuda "
            "backend on Hopper: both must be multiples of 8; use the tensorrt or cpu backend"
        )
    parts = 1 if epilogue == RESIDUAL else statistics.shape[0]
    program = tiles.program(epilogue, a.dtype, parts)
    blocks = multiprocessors(a.device)
    if tiles.cluster > 1:
        blocks = tiles.cluster * resident_clusters(
            program, a.device.index or 0, 384, tiles.shared_bytes, tiles.cluster
        )
    count = -(-rows // (tiles.cluster * tiles.block_rows)) * -(-columns // tiles.columns)
    launch(
        program,
        (min(blocks, count * tiles.cluster), 1, 1),
        384,
        tiles.shared_bytes,
        [
            matrix_map(a, tiles.block_rows, BLOCK_K),
            matrix_map(weight, tiles.columns // tiles.cluster, BLOCK_K),
            matrix_map(out, tiles.rows, tiles.chunk),
            bias,
            residual,
            statistics,
            new_statistics,
            residual.shape[0],
            rows,
            columns,
            inner,
            eps,
        ],
        cluster=tiles.cluster,
    )


def can_write_statistics(channels: int) -> bool:
    """Whether ``residual_linear`` can have this many output channels."""
    return residual_tiles(1, channels, 1) is not None


def statistics_parts(rows: int, channels: int, device: torch.device) -> int:
    """In how many parts ``residual_linear`` writes the statistics of rows of so many channels."""
    tiles = residual_tiles(rows, channels, multiprocessors(device))
    assert tiles is not None  # can_write_statistics
    return channels // tiles.columns


def fold_layer_norm(
    weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """A linear layer after a LayerNorm as one over rows that only lack the factor 1 / σ.

    With x̂ = (x - mean) / σ, (x̂ ∘ g + b) Wᵀ + c = (x W'ᵀ) / σ + c', where W' = W ∘ g with its rows
    centred (so that the mean drops out) and c' = b Wᵀ + c.

    Args:
        weight: [N, C] fp32.
        bias: [N] fp32.
        norm_weight: [C] fp32.
        norm_bias: [C] fp32.

    Returns:
        W' [N, C] and c' [N], fp32.
    """
    scaled = weight * norm_weight
    return scaled - scaled.mean(1, keepdim=True), bias + weight @ norm_bias

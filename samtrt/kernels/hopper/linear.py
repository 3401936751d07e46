"""Linear layers with the LayerNorm before them, or the residual sum after them, inside.

In fp16 or bf16, or with e4m3 operands, e4m3 outputs, or both.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samtrt.errors import EngineError
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.launch import Launch, Struct, launch, matrix_map

K_BYTES = 128  # of a row in a stage
PART_ROWS = 64  # of one product
SHARED_BANDWIDTH = 128  # bytes a cycle and multiprocessor
CHUNK = 64  # linear_tile.cuh
THREADS = 384
NORMALISED, NORMALISED_GELU, RESIDUAL = range(3)  # linear_tile.cuh, Epilogue
LAYER_BYTES = 896  # linear_tile.cuh, Layer
QUANTISED_GROUP = 32  # columns of an e4m3 output that are put in another order together
ATTENDED_GROUP = 16  # the same of attention's, whose heads may have 80 columns
REPEATED_ROWS = 64  # a residual that repeats has a multiple of so many rows
# linear_epilogue.cuh, gelu: the largest x², and q's coefficients.
GELU = {
    "GELU_LIMIT": 25.0,
    "GELU_2": 1.01533051e-3,
    "GELU_1": -1.06782307e-1,
    "GELU_0": -2.30111408,
}


# The same for the form by tanh, where q is times -ln2 / 2: fp16 in both halves of a register.
GELU_HALVES = {
    f"{name}_HALVES": 0x10001 * int(np.float16(value * factor).view(np.uint16))
    for name, value in GELU.items()
    for factor in (1.0 if name == "GELU_LIMIT" else -np.log(2) / 2,)
}


@dataclass(frozen=True)
class LinearTiles:
    """How a product is cut into tiles.

    Attributes:
        rows: of a tile and warpgroup, 64 or 128.
        columns: of a tile, a multiple of 32.
        pingpong: whether the two warpgroups work on different tiles in turn, or on the halves of
            one of twice the rows.
        stages: pairs of operand tiles in flight.
        group: row blocks, at most, that tiles run down before they move right, for the L2 cache.
    """

    rows: int = 128
    columns: int = 160
    pingpong: bool = True
    stages: int = 5
    group: int = 8

    @property
    def block_rows(self) -> int:
        """Rows of a block's tile."""
        return self.rows if self.pingpong else 2 * self.rows

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Tiles along the rows and the columns of an output."""
        return -(-rows // self.block_rows), -(-columns // self.columns)

    def shared_bytes(self, fp8_operands: bool = False, fp8_output: bool = False) -> int:
        """Shared memory of a block."""
        stage = (self.block_rows + self.columns) * K_BYTES
        places = 2 * PART_ROWS * self.columns * 2 if self.pingpong and not fp8_output else 0
        of_column = 1 + fp8_operands + fp8_output  # the bias, scales
        return self.stages * (stage + 16) + places + 2 * of_column * self.columns * 4

    @property
    def shared_traffic(self) -> float:
        """Bytes of shared memory a cycle, were the tensor cores never idle: 2048 products a cycle
        and multiprocessor, operands read for each 64 rows, and written once a block's tile."""
        read = (PART_ROWS + self.columns) / (PART_ROWS * self.columns)
        written = (self.block_rows + self.columns) / (self.block_rows * self.columns)
        return 2 * 2048 * (read + written)

    def program(
        self,
        epilogue: int,
        dtype: torch.dtype,
        statistics: int = 1,
        fp8_operands: bool = False,
        fp8_output: bool = False,
    ) -> Program:
        """The kernel with one epilogue.

        Args:
            dtype: fp16 or bf16, of what is not e4m3.
            statistics: parts of the row statistics that are read.
            fp8_operands: the layer's input and weight are e4m3.
            fp8_output: what comes out is e4m3; with a residual, in 16 bits as well.
        """
        constants = {
            "WG_ROWS": self.rows,
            "BLOCK_N": self.columns,
            "PINGPONG": int(self.pingpong),
            "STAGES": self.stages,
            "STATISTICS": statistics,
            "EPILOGUE": epilogue,
            "FP8_OPERANDS": int(fp8_operands),
            "FP8_OUTPUT": int(fp8_output),
            **GELU,
            **GELU_HALVES,
        }
        headers = ("linear_tile.cuh", "linear_epilogue.cuh")
        return Program("linear.cu", tuple(constants.items()), (self.columns,), dtype, headers)


@dataclass(frozen=True)
class Linear:
    """A linear layer with the LayerNorm before it or the residual sum after it.

    Without a residual: ``norm1`` and ``attn.qkv``, or ``norm2``, ``mlp.lin1`` and ``mlp.act``. With
    one: ``x + attn.proj(a)`` or ``x + mlp.lin2(a)``, and what the next norm needs to know of it.

    Where the operands are e4m3, they and the sums are scaled as the weight's columns and
    ``weight_scale`` make good; the columns of both are in the order of ``quantised_order``.

    Attributes:
        a: [M, K], fp16, bf16 or e4m3, rows contiguous; without a residual the residual stream, not
            normalised.
        weight: [N, K], the type of ``a``, contiguous; without a residual from ``fold_layer_norm``.
        bias: [N] fp32; likewise.
        out: [M, N], fp16 or bf16, the type of ``a`` unless that is e4m3, rows contiguous. None
            where there is only ``quantised``.
        statistics: [parts, M, 2] fp32, contiguous: of each row's part of N / parts (or K / parts)
            channels, the sum and the sum of squared differences from the part's mean. Without a
            residual of ``a``, read; with one of ``out``, written.
        residual: [M, N], the type of ``a``, contiguous; may be ``out``. Or a divisor of M of rows,
            a multiple of ``REPEATED_ROWS``, that repeat.
        gelu: whether the erf GELU follows; without a residual.
        eps: the norm's.
        weight_scale: [N] fp32, of an e4m3 weight: what its rows' sums are multiplied by.
        quantised: [M, N] e4m3, contiguous, written: the output times ``quantised_scale``, with its
            columns in ``quantised_order``. In place of ``out``; beside it with a residual.
        quantised_scale: [N] fp32.
    """

    a: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor | None
    statistics: Tensor
    residual: Tensor | None = None
    gelu: bool = False
    eps: float = 0.0
    weight_scale: Tensor | None = None
    quantised: Tensor | None = None
    quantised_scale: Tensor | None = None

    @property
    def epilogue(self) -> int:
        if self.residual is not None:
            return RESIDUAL
        return NORMALISED_GELU if self.gelu else NORMALISED

    @property
    def fp8(self) -> dict[str, bool]:
        """What is e4m3, by the names of ``LinearTiles``."""
        return {
            "fp8_operands": self.weight_scale is not None,
            "fp8_output": self.quantised is not None,
        }

    @property
    def dtype(self) -> torch.dtype:
        """fp16 or bf16, of what is not e4m3."""
        return self.a.dtype if self.out is None else self.out.dtype

    def packed(self, tiles: LinearTiles) -> Struct:
        """As the kernels take it: linear_tile.cuh, ``Layer``."""
        (rows, inner), columns = self.a.shape, self.weight.shape[0]
        multiple = QUANTISED_GROUP if any(self.fp8.values()) else 8
        if inner % multiple or columns % multiple:
            raise EngineError(
                f"a linear layer of {inner} → {columns} channels is not supported by the cuda "
                f"backend on Hopper: both must be multiples of {multiple}; use the tensorrt or cpu "
                "backend"
            )
        residual_rows = rows if self.residual is None else len(self.residual)
        if residual_rows != rows and residual_rows % REPEATED_ROWS:
            raise EngineError(
                f"a residual of {residual_rows} rows cannot repeat in one of {rows}: its rows must "
                f"be a multiple of {REPEATED_ROWS}"
            )
        tail = tiles.columns % CHUNK or CHUNK
        blocks_m, blocks_n = tiles.grid(rows, columns)
        block_k = K_BYTES // self.a.element_size()
        # (Something stands for what the layer has not; the kernel does not look at it.)
        out = self.quantised if self.out is None else self.out
        assert out is not None
        residual = out if self.residual is None else self.residual
        members = (
            matrix_map(self.a, tiles.block_rows, block_k),
            matrix_map(self.weight, tiles.columns, block_k),
            *(
                matrix_map(matrix, PART_ROWS, width)
                for matrix in (out, residual)
                for width in (CHUNK, tail)
            ),
            self.bias,
            self.bias if self.weight_scale is None else self.weight_scale,
            self.statistics,
            out if self.quantised is None else self.quantised,
            self.bias if self.quantised_scale is None else self.quantised_scale,
            residual_rows,
            rows,
            columns,
            inner,
            blocks_m * blocks_n,
            next(group for group in range(tiles.group, 0, -1) if blocks_m % group == 0),
            blocks_n,
            self.eps,
        )
        return Struct(members, LAYER_BYTES)


# Of all that fit shared memory, these were the fastest (docs/performance.md).
WIDE = LinearTiles(columns=192, stages=4)
MIDDLE = LinearTiles(columns=160)
NARROW = LinearTiles(columns=128, stages=6)
# With a residual, two warpgroups on one tile: there is little to hide in the epilogue.
TALL = LinearTiles(columns=160, pingpong=False, stages=4)
TALL_NARROW = LinearTiles(columns=128, pingpong=False, stages=4)
SHORT_WIDE = LinearTiles(rows=64, columns=192, pingpong=False)
SHORT = LinearTiles(rows=64, columns=160, pingpong=False, stages=6)
SHORT_NARROW = LinearTiles(rows=64, columns=128, pingpong=False, stages=6)
RESIDUAL_TILES = (TALL, TALL_NARROW, SHORT_WIDE, SHORT, SHORT_NARROW)


def normalised_tiles(rows: int, columns: int, processors: int) -> LinearTiles:
    """The tiles that keep the busiest of the multiprocessors busy for the shortest time."""
    return min((WIDE, MIDDLE, NARROW), key=lambda t: _duration(t, rows, columns, processors))


def residual_tiles(rows: int, columns: int, processors: int) -> LinearTiles | None:
    """The same among those that cut the columns into equal parts; None where none do."""
    candidates = [tiles for tiles in RESIDUAL_TILES if columns % tiles.columns == 0]
    return min(candidates, key=lambda t: _duration(t, rows, columns, processors), default=None)


def _duration(tiles: LinearTiles, rows: int, columns: int, processors: int) -> float:
    """Of the busiest multiprocessor, relative to others': its elements, times the traffic of its
    shared memory where that is the limit."""
    blocks_m, blocks_n = tiles.grid(rows, columns)
    elements = -(-blocks_m * blocks_n // processors) * tiles.block_rows * tiles.columns
    return elements * max(1.0, tiles.shared_traffic / SHARED_BANDWIDTH)


def linear_layer(layer: Linear, tiles: LinearTiles | None = None) -> None:
    """One layer, one launch; see ``linear_launch``."""
    device = layer.a.device
    launch(linear_launch(layer, multiprocessors(device), tiles), device)


def linear_launch(layer: Linear, processors: int, tiles: LinearTiles | None = None) -> Launch:
    """How one layer is launched.

    Args:
        processors: multiprocessors of the GPU.
        tiles: the launch configuration; measured ones by default.

    Raises:
        EngineError: a row is not a multiple of 16 bytes (the copy engine needs that), or the
            statistics are not in as many parts as the tiles cut the columns into, or a residual's
            rows cannot repeat.
    """
    rows, columns, parts = len(layer.a), len(layer.weight), layer.statistics.shape[0]
    if layer.epilogue == RESIDUAL:
        tiles = tiles or residual_tiles(rows, columns, processors)
        if tiles is None or parts * tiles.columns != columns:
            raise EngineError(
                f"a linear layer onto {columns} channels is not cut into {parts} equal parts by "
                f"{tiles}"
            )
    tiles = tiles or normalised_tiles(rows, columns, processors)
    program = tiles.program(
        layer.epilogue, layer.dtype, 1 if layer.epilogue == RESIDUAL else parts, **layer.fp8
    )
    blocks_m, blocks_n = tiles.grid(rows, columns)
    grid = (min(processors, blocks_m * blocks_n), 1, 1)
    shared_bytes = tiles.shared_bytes(**layer.fp8)
    return Launch(program, grid, THREADS, shared_bytes, (layer.packed(tiles),))


def can_write_statistics(channels: int) -> bool:
    """Whether a layer with a residual can have this many output channels."""
    return residual_tiles(1, channels, 1) is not None


def statistics_parts(rows: int, channels: int, processors: int) -> int:
    """In how many parts a layer with a residual writes its rows' statistics."""
    tiles = residual_tiles(rows, channels, processors)
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
    # (not as a product of torch's, which may round its operands to TF32)
    return scaled - scaled.mean(1, keepdim=True), bias + (weight * norm_bias).sum(1)


def quantised_order(matrix: Tensor, group: int = QUANTISED_GROUP) -> Tensor:
    """The columns of a matrix in the order in which a kernel writes its e4m3 outputs.

    Of each ``group`` columns, 8 j + 2 t + i (i < 2, t < 4) stands at t · group / 4 + 2 j + i: what
    a thread of the tensor cores' accumulators holds is written together.

    Args:
        matrix: [N, K], K a multiple of ``group``.
        group: ``QUANTISED_GROUP``, or ``ATTENDED_GROUP``.

    Returns:
        [N, K], contiguous.
    """
    parts = matrix.unflatten(1, (-1, group // 8, 4, 2))
    return parts.transpose(2, 3).flatten(1).contiguous()

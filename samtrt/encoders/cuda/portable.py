"""The trunk from Triton kernels and cuBLAS: compute capability 8.0 and newer, any SAM.

What is folded into the parameters when they are packed:

- The biases of ``attn.proj`` and ``mlp.lin2`` are never added to the residual stream. Their running
  sum is a vector known in advance, and each LayerNorm adds it as it reads (``shift``). So both
  linears are bare products that accumulate into the residual.
- The patch embedding's bias is part of ``pos_embed``.
- The relative position tables carry √head_dim, because the attention kernels scale the sum of q·kᵀ
  and the bias (Meta scales q·kᵀ alone).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.encoders.cuda.ends import Taps, write_tap
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.kernels.cublaslt import Products
from samtrt.kernels.triton.assembler import require_sound_ptxas
from samtrt.kernels.triton.gemm import GemmTiles, gelu, linear_gelu
from samtrt.kernels.triton.global_attention import (
    GlobalTiles,
    global_attention,
    relative_positions,
    row_block,
)
from samtrt.kernels.triton.norm import layer_norm
from samtrt.kernels.triton.window_attention import (
    WindowTiles,
    window_attention,
    window_places,
    window_table,
)


@dataclass(frozen=True)
class Tiles:
    """Launch configurations of one GPU architecture; fixed, so that nothing is tuned at start."""

    gemm: GemmTiles | None  # None: cuBLAS and a GELU of its own
    window: WindowTiles
    globals: GlobalTiles


# By compute capability's major number. Hopper's were measured (docs/performance.md); the others
# are chosen to fit 99 KiB of shared memory, the least that sm_80 and newer have.
HOPPER = Tiles(
    GemmTiles(), WindowTiles(block_n=32, num_stages=3), GlobalTiles(block_m=64, num_warps=4)
)
PORTABLE = Tiles(None, WindowTiles(), GlobalTiles(block_m=64, num_warps=4, num_stages=2, tma=False))


@dataclass(frozen=True)
class _Block:
    """One packed transformer block; matrices in the compute type, vectors that norms read fp32."""

    norm1_shift: Tensor
    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    rel_pos: Tensor  # window: window_table's; global: [2, 2 * side - 1, D], h and w
    proj_weight: Tensor
    norm2_shift: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    lin1_weight: Tensor
    lin1_bias: Tensor
    lin2_weight: Tensor


class PortableTrunk:
    """See ``samtrt.encoders.cuda.encoder.Trunk``."""

    name = "portable"

    def __init__(
        self, parameters: EncoderParameters, products: Products, max_batch_size: int
    ) -> None:
        """
        Raises:
            EngineError: the configuration is not supported, or Triton's assembler is not sound.
        """
        self.config = parameters.config
        self.dtype, self.device = parameters.dtype, parameters.device
        if self.config.global_attn_indexes:
            row_block(self.config.grid_size)
        self.tiles = _tiles_for(self.device)
        self._product = products
        self._pack(parameters)
        self._allocate(parameters.empty, max_batch_size)

    def __call__(self, patches: Tensor, batch: int, taps: Taps) -> Tensor:
        x = self._x[: patches.shape[0]]
        # patch_embed, x + pos_embed
        x.view(batch, -1, self.config.embed_dim).copy_(self._pos_embed)
        self._product(patches, self._patch_weight, x, accumulate=True)
        for index, block in enumerate(self._blocks):
            self._block(batch, block, self.config.is_global(index))
            if index in taps:
                write_tap(taps[index], x, self._shift_after(index))
        return x

    def _shift_after(self, index: int) -> Tensor:
        """What the stream lacks after that block."""
        is_last = index + 1 == len(self._blocks)
        return self.shift if is_last else self._blocks[index + 1].norm1_shift

    def _block(self, batch: int, block: _Block, is_global: bool) -> None:
        """``Block.forward``: eight launches, nine where attention is global."""
        config, tiles = self.config, self.tiles
        side, channels, heads = config.grid_size, config.embed_dim, config.num_heads
        rows = batch * side * side
        x, normed = self._x[:rows], self._normed[:rows]
        eps = config.layer_norm_eps

        # x = self.norm1(x)
        layer_norm(x, block.norm1_shift, block.norm1_weight, block.norm1_bias, normed, eps)
        # qkv = self.qkv(x): of real tokens only
        qkv = self._view(rows, 3 * channels)
        self._product(normed, block.qkv_weight, qkv, block.qkv_bias)
        # window_partition, attn without its linears, window_unpartition
        qkv = qkv.view(batch, side, side, 3 * channels)
        attended = normed.view(batch, side, side, channels)  # norm1's output is done with
        if is_global:
            rel_h, rel_w = self._relative_positions(batch)
            table_h, table_w = block.rel_pos
            relative_positions(qkv, table_h, table_w, rel_h, rel_w, heads)
            global_attention(qkv, rel_h, rel_w, attended, heads, tiles.globals)
        else:
            window_attention(
                qkv,
                block.qkv_bias,
                block.rel_pos,
                self._places,
                attended,
                config.window_size,
                heads,
                tiles.window,
            )
        # x = shortcut + self.proj(x)
        self._product(normed, block.proj_weight, x, accumulate=True)
        # x = x + self.mlp(self.norm2(x))
        layer_norm(x, block.norm2_shift, block.norm2_weight, block.norm2_bias, normed, eps)
        hidden = self._view(rows, config.mlp_dim)
        if tiles.gemm is not None:
            linear_gelu(normed, block.lin1_weight, block.lin1_bias, hidden, tiles.gemm)
        else:
            self._product(normed, block.lin1_weight, hidden, block.lin1_bias)
            gelu(hidden, hidden)
        self._product(hidden, block.lin2_weight, x, accumulate=True)

    def _allocate(self, empty: Callable[..., Tensor], batch: int) -> None:
        config = self.config
        side, channels = config.grid_size, config.embed_dim
        rows = batch * side * side

        self._x = empty(rows, channels)
        self._normed = empty(rows, channels)
        # Never alive together: qkv with rel_h and rel_w, the MLP's hidden layer.
        qkv = rows * 3 * channels
        self._rel_offset = qkv
        pairs = rows * config.num_heads
        relative = pairs * (2 * side + row_block(side)) if config.global_attn_indexes else 0
        self._workspace = empty(max(qkv + relative, rows * config.mlp_dim))

    def _view(self, rows: int, columns: int) -> Tensor:
        return self._workspace[: rows * columns].view(rows, columns)

    def _relative_positions(self, batch: int) -> tuple[Tensor, Tensor]:
        """``rel_h`` [B, heads, H, H * W] fp32 and ``rel_w`` [B, heads, H * W, row block]."""
        side, heads = self.config.grid_size, self.config.num_heads
        tokens = side * side
        count_h = 2 * batch * heads * side * tokens  # two elements hold one fp32
        block = row_block(side)
        offset = self._rel_offset
        rel_h = self._workspace[offset : offset + count_h].view(torch.float32)
        offset += count_h
        rel_w = self._workspace[offset : offset + batch * heads * tokens * block]
        return (
            rel_h.view(batch, heads, side, tokens),
            rel_w.view(batch, heads, tokens, block),
        )

    def _pack(self, parameters: EncoderParameters) -> None:
        config = self.config
        channels = config.embed_dim
        fp32, matrix = parameters.fp32, parameters.matrix
        self._patch_weight = matrix("patch_embed.proj.weight").view(channels, -1)
        pos_embed = fp32("pos_embed") + fp32("patch_embed.proj.bias")
        self._pos_embed = pos_embed.view(1, -1, channels).to(self.dtype)

        shift = torch.zeros(channels, dtype=torch.float32, device=self.device)
        if not all(map(config.is_global, range(config.depth))):
            self._places = window_places(config.window_size).to(self.device, self.dtype)
        self._blocks = []
        for index in range(config.depth):
            name = f"blocks.{index}."
            rel_pos = parameters.rel_pos(index)
            if config.is_global(index):
                table = torch.stack(rel_pos) * config.head_dim**0.5
            else:
                table = window_table(*rel_pos, config.window_size)
            norm1_shift = shift
            norm2_shift = norm1_shift + fp32(name + "attn.proj.bias")
            shift = norm2_shift + fp32(name + "mlp.lin2.bias")
            self._blocks.append(
                _Block(
                    norm1_shift=norm1_shift,
                    norm1_weight=fp32(name + "norm1.weight"),
                    norm1_bias=fp32(name + "norm1.bias"),
                    qkv_weight=matrix(name + "attn.qkv.weight"),
                    qkv_bias=matrix(name + "attn.qkv.bias"),
                    rel_pos=table.to(self.dtype),
                    proj_weight=matrix(name + "attn.proj.weight"),
                    norm2_shift=norm2_shift,
                    norm2_weight=fp32(name + "norm2.weight"),
                    norm2_bias=fp32(name + "norm2.bias"),
                    lin1_weight=matrix(name + "mlp.lin1.weight"),
                    lin1_bias=matrix(name + "mlp.lin1.bias"),
                    lin2_weight=matrix(name + "mlp.lin2.weight"),
                )
            )
        self.shift = shift


def _tiles_for(device: torch.device) -> Tiles:
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        require_sound_ptxas()
        return HOPPER
    return PORTABLE

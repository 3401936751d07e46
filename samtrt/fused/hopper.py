"""The trunk for Hopper: two launches a block, each started while the one before it drains.

One is attention; the other is every linear layer from this block's attention to the next block's.
The LayerNorms are inside the linear layers around them (samtrt/kernels/hopper/linear_tile.cuh): the
residual stream itself is what ``attn.qkv`` and ``mlp.lin1`` multiply.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.config import EncoderConfig
from samtrt.fused.parameters import EncoderParameters
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper import global_attention as over_grid
from samtrt.kernels.hopper import window_attention as over_window
from samtrt.kernels.hopper.linear import (
    MAX_LAYERS,
    Linear,
    can_write_statistics,
    chain_tiles,
    fold_layer_norm,
    layers_schedule,
    linear_layer,
    linear_layers,
    statistics_parts,
)


@dataclass(frozen=True)
class _Block:
    """One packed transformer block; matrices in the compute type, biases of linears fp32."""

    qkv_weight: Tensor  # with norm1 folded in, as its bias
    qkv_bias: Tensor
    padding: Tensor  # attn.qkv.bias itself: what a padded token's row is
    rel_pos: Tensor  # window: window_table; global: [2, 2 * side - 1, D], h and w, times √D
    proj_weight: Tensor
    proj_bias: Tensor
    lin1_weight: Tensor  # with norm2 folded in, as its bias
    lin1_bias: Tensor
    lin2_weight: Tensor
    lin2_bias: Tensor


class HopperTrunk:
    """See ``samtrt.fused.encoder.Trunk``."""

    chained = False

    def __init__(self, parameters: EncoderParameters, max_batch_size: int) -> None:
        """
        Raises:
            EngineError: NVRTC is missing.
        """
        self.config = parameters.config
        self.dtype, self.device = parameters.dtype, parameters.device
        self.shift = torch.zeros(self.config.embed_dim, device=self.device)  # nothing
        self._pack(parameters)
        self._allocate(max_batch_size)

    @staticmethod
    def supports(config: EncoderConfig) -> bool:
        """Whether the kernels know these sizes; Meta's three models among them."""
        side, head_dim = config.grid_size, config.head_dim
        kinds = {config.is_global(index) for index in range(config.depth)}
        return (
            can_write_statistics(config.embed_dim)
            and config.mlp_dim % 8 == 0
            and (False not in kinds or over_window.supports(head_dim, config.window_size))
            and (True not in kinds or over_grid.supports(side, side, head_dim))
        )

    def prepare(self, batch: int) -> None:
        """Deals windows and tiles out to the multiprocessors."""
        config = self.config
        side, channels, hidden = config.grid_size, config.embed_dim, config.mlp_dim
        blocks = multiprocessors(self.device)
        if not all(map(config.is_global, range(config.depth))):
            self._windows[batch] = over_window.window_schedule(
                batch, side, side, config.window_size, config.num_heads, blocks
            ).to(self.device)
        sizes = [
            (channels, channels),
            (hidden, channels),
            (channels, hidden),
            (3 * channels, channels),
        ]
        for count in (3, 4):  # the last block has no qkv after it
            self._tiles[batch, count] = layers_schedule(
                batch * side * side, sizes[:count], blocks, chain_tiles(channels)
            ).to(self.device)

    def __call__(self, patches: Tensor, batch: int) -> Tensor:
        config, rows = self.config, patches.shape[0]
        side, channels = config.grid_size, config.embed_dim
        x, attended = self._x[:rows], self._attended[:rows]
        # Rows of qkv take the place of the hidden layer's, which are done with by then.
        hidden = self._workspace[:rows, : config.mlp_dim]
        qkv = self._workspace[:rows, : 3 * channels]
        self._done.zero_()

        # patch_embed, x + pos_embed
        parts = statistics_parts(rows, channels, self.device)
        embedded = self._statistics[0, : parts * rows * 2].view(parts, rows, 2)
        linear_layer(
            Linear(patches, self._patch_weight, self._patch_bias, x, embedded, self._pos_embed)
        )
        # blocks[0]: x = self.norm1(x), qkv = self.qkv(x): of real tokens only
        first = self._blocks[0]
        eps = config.layer_norm_eps
        linear_layer(Linear(x, first.qkv_weight, first.qkv_bias, qkv, embedded, eps=eps))

        tiles = chain_tiles(channels)
        if self.chained:
            parts = channels // tiles.columns
        after_proj, after_lin2 = self._statistics[:, : parts * rows * 2].view(2, parts, rows, 2)
        for index, block in enumerate(self._blocks):
            # window_partition, attn without its linears, window_unpartition
            self._attention(
                block,
                config.is_global(index),
                qkv.view(batch, side, side, 3 * channels),
                attended.view(batch, side, side, channels),
            )
            layers = [
                # x = shortcut + self.proj(x)
                Linear(attended, block.proj_weight, block.proj_bias, x, after_proj, x),
                # x = x + self.mlp(self.norm2(x))
                Linear(
                    x, block.lin1_weight, block.lin1_bias, hidden, after_proj, gelu=True, eps=eps
                ),
                Linear(hidden, block.lin2_weight, block.lin2_bias, x, after_lin2, x),
            ]
            if index + 1 < config.depth:
                # the next block's norm1 and qkv
                following = self._blocks[index + 1]
                layers.append(
                    Linear(x, following.qkv_weight, following.qkv_bias, qkv, after_lin2, eps=eps)
                )
            if self.chained:
                linear_layers(layers, self._tiles[batch, len(layers)], self._done[index], tiles)
            else:
                for layer in layers:
                    linear_layer(layer)
        return x

    def _attention(self, block: _Block, is_global: bool, qkv: Tensor, out: Tensor) -> None:
        heads = self.config.num_heads
        if is_global:
            over_grid.global_attention(qkv, block.rel_pos[0], block.rel_pos[1], out, heads)
        else:
            over_window.window_attention(
                qkv,
                block.padding,
                block.rel_pos,
                self._windows[qkv.shape[0]],
                out,
                self.config.window_size,
                heads,
            )

    def _allocate(self, batch: int) -> None:
        config = self.config
        channels = config.embed_dim
        rows = batch * config.grid_size**2

        def empty(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=self.device)

        self._x = empty(rows, channels)
        self._attended = empty(rows, channels)
        self._workspace = empty(rows, max(3 * channels, config.mlp_dim))
        # After proj and after lin2; at most so many parts.
        self._statistics = empty(2, channels // 128 * rows * 2, dtype=torch.float32)
        row_blocks = -(-rows // chain_tiles(channels).block_rows)
        self._done = empty(config.depth, MAX_LAYERS, row_blocks, dtype=torch.int32)
        self._windows: dict[int, Tensor] = {}
        self._tiles: dict[tuple[int, int], Tensor] = {}

    def _pack(self, parameters: EncoderParameters) -> None:
        config, fp32, matrix = self.config, parameters.fp32, parameters.matrix
        channels = config.embed_dim
        self._patch_weight = matrix("patch_embed.proj.weight").view(channels, -1)
        self._patch_bias = fp32("patch_embed.proj.bias")
        self._pos_embed = matrix("pos_embed").view(-1, channels)

        def folded(linear: str, norm: str) -> tuple[Tensor, Tensor]:
            weight, bias = fold_layer_norm(
                fp32(linear + ".weight"),
                fp32(linear + ".bias"),
                fp32(norm + ".weight"),
                fp32(norm + ".bias"),
            )
            return weight.to(self.dtype), bias

        self._blocks = []
        for index in range(config.depth):
            name = f"blocks.{index}."
            rel_pos = parameters.rel_pos(index)
            if config.is_global(index):
                table = torch.stack(rel_pos) * config.head_dim**0.5
            else:
                table = over_window.window_table(*rel_pos, config.window_size)
            qkv_weight, qkv_bias = folded(name + "attn.qkv", name + "norm1")
            lin1_weight, lin1_bias = folded(name + "mlp.lin1", name + "norm2")
            self._blocks.append(
                _Block(
                    qkv_weight=qkv_weight,
                    qkv_bias=qkv_bias,
                    padding=matrix(name + "attn.qkv.bias"),
                    rel_pos=table.to(self.dtype),
                    proj_weight=matrix(name + "attn.proj.weight"),
                    proj_bias=fp32(name + "attn.proj.bias"),
                    lin1_weight=lin1_weight,
                    lin1_bias=lin1_bias,
                    lin2_weight=matrix(name + "mlp.lin2.weight"),
                    lin2_bias=fp32(name + "mlp.lin2.bias"),
                )
            )

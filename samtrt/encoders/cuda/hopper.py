"""The trunk for Hopper: five launches a block, each started while the one before it drains.

The LayerNorms are inside the linear layers around them (samtrt/kernels/hopper/linear_tile.cuh): the
residual stream itself is what ``attn.qkv`` and ``mlp.lin1`` multiply.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.ends import Taps, write_tap
from samtrt.encoders.cuda.hopper_block import HopperBlock, pack_block
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper import global_attention as over_grid
from samtrt.kernels.hopper import window_attention as over_window
from samtrt.kernels.hopper.compiler import require_compiler
from samtrt.kernels.hopper.linear import (
    REPEATED_ROWS,
    Linear,
    can_write_statistics,
    linear_layer,
    statistics_parts,
)


class HopperTrunk:
    """See ``samtrt.encoders.cuda.encoder.Trunk``."""

    name = "hopper"

    def __init__(self, parameters: EncoderParameters, max_batch_size: int) -> None:
        """
        Raises:
            EngineError: NVRTC is missing.
        """
        require_compiler()
        self.config = parameters.config
        self.dtype, self.device = parameters.dtype, parameters.device
        # nothing
        self.shift = parameters.empty(self.config.embed_dim, dtype=torch.float32).zero_()
        self._pack(parameters, max_batch_size)
        self._allocate(parameters.empty, max_batch_size)

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

    def __call__(self, patches: Tensor, batch: int, taps: Taps) -> Tensor:
        config, rows = self.config, patches.shape[0]
        parts = statistics_parts(rows, config.embed_dim, multiprocessors(self.device))
        statistics = self._statistics[: parts * rows * 2].view(parts, rows, 2)
        x = self._x[:rows]
        # patch_embed, x + pos_embed
        pos_embed = self._pos_embed[:rows]
        linear_layer(
            Linear(patches, self._patch_weight, self._patch_bias, x, statistics, pos_embed)
        )
        for index, block in enumerate(self._blocks):
            self._block(x, statistics, batch, block, config.is_global(index))
            if index in taps:
                write_tap(taps[index], x)
        return x

    def _block(
        self, x: Tensor, statistics: Tensor, batch: int, block: HopperBlock, is_global: bool
    ) -> None:
        """``Block.forward``, on ``x`` [B * H * W, C] in place, whose statistics are kept up."""
        config, rows = self.config, x.shape[0]
        side, channels, eps = config.grid_size, config.embed_dim, config.layer_norm_eps
        attended = self._attended[:rows]
        # Never alive together; the rows of one lie in those of the other.
        qkv = self._workspace[:rows, : 3 * channels]
        hidden = self._workspace[:rows, : config.mlp_dim]

        # x = self.norm1(x), qkv = self.qkv(x): of real tokens only
        linear_layer(Linear(x, block.qkv_weight, block.qkv_bias, qkv, statistics, eps=eps))
        # window_partition, attn without its linears, window_unpartition
        self._attention(
            block,
            is_global,
            qkv.view(batch, side, side, 3 * channels),
            attended.view(batch, side, side, channels),
        )
        # x = shortcut + self.proj(x)
        linear_layer(Linear(attended, block.proj_weight, block.proj_bias, x, statistics, x))
        # x = x + self.mlp(self.norm2(x))
        linear_layer(
            Linear(x, block.lin1_weight, block.lin1_bias, hidden, statistics, gelu=True, eps=eps)
        )
        linear_layer(Linear(hidden, block.lin2_weight, block.lin2_bias, x, statistics, x))

    def _attention(self, block: HopperBlock, is_global: bool, qkv: Tensor, out: Tensor) -> None:
        heads = self.config.num_heads
        if is_global:
            over_grid.global_attention(qkv, block.rel_pos[0], block.rel_pos[1], out, heads)
        else:
            over_window.window_attention(
                qkv,
                block.padding,
                block.rel_pos,
                self._schedule(qkv.shape[0]),
                out,
                self.config.window_size,
                heads,
            )

    def _schedule(self, batch: int) -> Tensor:
        """The windows of a batch, dealt out to the multiprocessors."""
        if batch not in self._schedules:
            side = self.config.grid_size
            self._schedules[batch] = over_window.window_schedule(
                batch,
                side,
                side,
                self.config.window_size,
                self.config.num_heads,
                multiprocessors(self.device),
            ).to(self.device)
        return self._schedules[batch]

    def _allocate(self, empty: Callable[..., Tensor], batch: int) -> None:
        config = self.config
        channels = config.embed_dim
        rows = batch * config.grid_size**2

        self._x = empty(rows, channels)
        self._attended = empty(rows, channels)
        self._workspace = empty(rows, max(3 * channels, config.mlp_dim))
        # Of each row of x: at most so many parts.
        self._statistics = empty(channels // 128 * rows * 2, dtype=torch.float32)
        self._schedules: dict[int, Tensor] = {}

    def _pack(self, parameters: EncoderParameters, max_batch_size: int) -> None:
        config, matrix = self.config, parameters.matrix
        channels = config.embed_dim
        self._patch_weight = matrix("patch_embed.proj.weight").view(channels, -1)
        self._patch_bias = parameters.fp32("patch_embed.proj.bias")
        pos_embed = matrix("pos_embed").view(-1, channels)
        repeats = len(pos_embed) % REPEATED_ROWS == 0
        self._pos_embed = pos_embed if repeats else pos_embed.repeat(max_batch_size, 1)

        self._blocks = [pack_block(parameters, index) for index in range(config.depth)]

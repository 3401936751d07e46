"""The trunk for Hopper: five launches a block, each started while the one before it drains.

The LayerNorms are inside the linear layers around them (samtrt/kernels/hopper/linear_tile.cuh): the
residual stream itself is what ``attn.qkv`` and ``mlp.lin1`` multiply.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.ends import Taps, write_tap
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper import global_attention as over_grid
from samtrt.kernels.hopper import window_attention as over_window
from samtrt.kernels.hopper.compiler import require_compiler
from samtrt.kernels.hopper.linear import (
    REPEATED_ROWS,
    Linear,
    can_write_statistics,
    fold_layer_norm,
    linear_layer,
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
        self, x: Tensor, statistics: Tensor, batch: int, block: _Block, is_global: bool
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

    def _attention(self, block: _Block, is_global: bool, qkv: Tensor, out: Tensor) -> None:
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
        config, fp32, matrix = self.config, parameters.fp32, parameters.matrix
        channels = config.embed_dim
        self._patch_weight = matrix("patch_embed.proj.weight").view(channels, -1)
        self._patch_bias = fp32("patch_embed.proj.bias")
        pos_embed = matrix("pos_embed").view(-1, channels)
        repeats = len(pos_embed) % REPEATED_ROWS == 0
        self._pos_embed = pos_embed if repeats else pos_embed.repeat(max_batch_size, 1)

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

"""The trunk for Hopper: five launches a block, each started while the one before it drains.

The LayerNorms are inside the linear layers around them (samtrt/kernels/hopper/linear.py): the
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
    can_write_statistics,
    fold_layer_norm,
    normalised_linear,
    residual_linear,
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
        """Deals the windows out to the multiprocessors."""
        config = self.config
        side = config.grid_size
        blocks = multiprocessors(self.device)
        self._schedules[batch] = over_window.window_schedule(
            batch, side, side, config.window_size, config.num_heads, blocks
        ).to(self.device)

    def __call__(self, patches: Tensor, batch: int) -> Tensor:
        rows = patches.shape[0]
        x, statistics = self._x[:rows], self._statistics(rows)
        # patch_embed, x + pos_embed
        residual_linear(
            patches, self._patch_weight, self._patch_bias, self._pos_embed, x, statistics
        )
        for index, block in enumerate(self._blocks):
            self._block(batch, block, self.config.is_global(index))
        return x

    def _block(self, batch: int, block: _Block, is_global: bool) -> None:
        """``Block.forward``."""
        config = self.config
        side, channels, heads = config.grid_size, config.embed_dim, config.num_heads
        rows = batch * side * side
        x, attended, statistics = self._x[:rows], self._attended[:rows], self._statistics(rows)
        eps = config.layer_norm_eps

        # x = self.norm1(x); qkv = self.qkv(x): of real tokens only
        qkv = self._workspace[: rows * 3 * channels].view(batch, side, side, 3 * channels)
        normalised_linear(
            x, statistics, block.qkv_weight, block.qkv_bias, qkv.view(rows, -1), eps, gelu=False
        )
        # window_partition, attn without its linears, window_unpartition
        grid = attended.view(batch, side, side, channels)
        if is_global:
            table_h, table_w = block.rel_pos
            over_grid.global_attention(qkv, table_h, table_w, grid, heads)
        else:
            over_window.window_attention(
                qkv,
                block.padding,
                block.rel_pos,
                self._schedules[batch],
                grid,
                config.window_size,
                heads,
            )
        # x = shortcut + self.proj(x)
        residual_linear(attended, block.proj_weight, block.proj_bias, x, x, statistics)
        # x = x + self.mlp(self.norm2(x))
        hidden = self._workspace[: rows * config.mlp_dim].view(rows, config.mlp_dim)
        normalised_linear(x, statistics, block.lin1_weight, block.lin1_bias, hidden, eps, gelu=True)
        residual_linear(hidden, block.lin2_weight, block.lin2_bias, x, x, statistics)

    def _statistics(self, rows: int) -> Tensor:
        """Of each row of ``x``, in parts: [parts, rows, 2] fp32."""
        parts = statistics_parts(rows, self.config.embed_dim, self.device)
        return self._row_statistics[: parts * rows * 2].view(parts, rows, 2)

    def _allocate(self, batch: int) -> None:
        config = self.config
        side, channels = config.grid_size, config.embed_dim
        rows = batch * side * side

        def empty(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=self.device)

        self._x = empty(rows, channels)
        self._row_statistics = empty(channels // 128 * rows * 2, dtype=torch.float32)  # at most
        self._attended = empty(rows, channels)
        # Never alive together: qkv and the MLP's hidden layer.
        self._workspace = empty(rows * max(3 * channels, config.mlp_dim))
        self._schedules: dict[int, Tensor] = {}

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

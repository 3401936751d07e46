"""The trunk for Hopper: five launches a block, each started while the one before it drains.

The LayerNorms are inside the linear layers around them (samtrt/kernels/hopper/linear.py): the
residual stream itself is what ``attn.qkv`` and ``mlp.lin1`` multiply.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.config import EncoderConfig
from samtrt.fused.parameters import EncoderParameters
from samtrt.kernels.global_attention import (
    GlobalTiles,
    global_attention,
    relative_positions,
    row_block,
)
from samtrt.kernels.hopper.linear import (
    can_write_statistics,
    fold_layer_norm,
    normalised_linear,
    residual_linear,
    statistics_parts,
)
from samtrt.kernels.window_attention import (
    WindowTiles,
    window_attention,
    window_places,
    window_table,
)


@dataclass(frozen=True)
class _Block:
    """One packed transformer block; matrices in the compute type, biases of linears fp32."""

    qkv_weight: Tensor  # with norm1 folded in, as its bias
    qkv_bias: Tensor
    padding: Tensor  # attn.qkv.bias itself: what a padded token's row is
    rel_pos: Tensor
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
        return can_write_statistics(config.embed_dim) and config.mlp_dim % 8 == 0

    def prepare(self, batch: int) -> None:
        """Nothing to do."""

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
            rel_h, rel_w = self._relative_positions(batch)
            relative_positions(qkv, block.rel_pos[0], block.rel_pos[1], rel_h, rel_w, heads)
            global_attention(qkv, rel_h, rel_w, grid, heads, GlobalTiles(block_m=64, num_warps=4))
        else:
            window_attention(
                qkv,
                block.padding,
                block.rel_pos,
                self._places,
                grid,
                config.window_size,
                heads,
                WindowTiles(block_n=32, num_stages=3),
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

    def _relative_positions(self, batch: int) -> tuple[Tensor, Tensor]:
        """``rel_h`` [B, heads, H, H * W] fp32 and ``rel_w`` [B, heads, H * W, row block]."""
        side, heads = self.config.grid_size, self.config.num_heads
        return (
            self._rel_h[: batch * heads * side**3].view(batch, heads, side, -1),
            self._rel_w[: batch * heads * side**2 * row_block(side)].view(
                batch, heads, side**2, -1
            ),
        )

    def _allocate(self, batch: int) -> None:
        config = self.config
        side, channels, heads = config.grid_size, config.embed_dim, config.num_heads
        rows = batch * side * side

        def empty(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=self.device)

        self._x = empty(rows, channels)
        self._row_statistics = empty(channels // 128 * rows * 2, dtype=torch.float32)  # at most
        self._attended = empty(rows, channels)
        # Never alive together: qkv and the MLP's hidden layer.
        self._workspace = empty(rows * max(3 * channels, config.mlp_dim))
        self._rel_h = empty(rows * heads * side, dtype=torch.float32)
        self._rel_w = empty(rows * heads * row_block(side))

    def _pack(self, parameters: EncoderParameters) -> None:
        config, fp32, matrix = self.config, parameters.fp32, parameters.matrix
        channels = config.embed_dim
        self._patch_weight = matrix("patch_embed.proj.weight").view(channels, -1)
        self._patch_bias = fp32("patch_embed.proj.bias")
        self._pos_embed = matrix("pos_embed").view(-1, channels)
        self._places = window_places(config.window_size).to(self.device, self.dtype)

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
                table = window_table(*rel_pos, config.window_size)
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

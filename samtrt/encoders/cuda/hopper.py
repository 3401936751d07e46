"""The trunk for Hopper: five launches a block, each started while the one before it drains.

The LayerNorms are inside the linear layers around them (samtrt/kernels/hopper/linear_tile.cuh): the
residual stream itself is what ``attn.qkv`` and ``mlp.lin1`` multiply.

Where a layer multiplies e4m3, the kernel before it writes its input so: the residual layers a
second output beside the stream, attention and ``mlp.lin1`` in place of the one in 16 bits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.ends import Taps, write_tap
from samtrt.encoders.cuda.hopper_block import HopperBlock, HopperLinear, pack_block
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
        self._add(patches, self._patch, x, self._pos_embed[:rows], statistics, self._blocks[0].qkv)
        for index, block in enumerate(self._blocks):
            last = index + 1 == config.depth
            following = None if last else self._blocks[index + 1].qkv
            self._block(x, statistics, batch, block, config.is_global(index), following)
            if index in taps:
                write_tap(taps[index], x)
        return x

    def _block(
        self,
        x: Tensor,
        statistics: Tensor,
        batch: int,
        block: HopperBlock,
        is_global: bool,
        following: HopperLinear | None,
    ) -> None:
        """``Block.forward``, on ``x`` [B * H * W, C] in place, whose statistics are kept up."""
        config, rows = self.config, x.shape[0]
        side, channels = config.grid_size, config.embed_dim
        attended = self._input(block.proj, self._attended, rows)
        # Never alive together; the rows of one lie in those of the other.
        qkv = self._workspace[:rows, : 3 * channels]
        hidden = self._input(block.lin2, self._workspace, rows)

        # x = self.norm1(x), qkv = self.qkv(x): of real tokens only
        self._normalised(x, block.qkv, qkv, statistics)
        # window_partition, attn without its linears, window_unpartition
        self._attention(
            block,
            is_global,
            qkv.view(batch, side, side, 3 * channels),
            attended.view(batch, side, side, channels),
        )
        # x = shortcut + self.proj(x)
        self._add(attended, block.proj, x, x, statistics, block.lin1)
        # x = x + self.mlp(self.norm2(x))
        self._normalised(
            x, block.lin1, hidden, statistics, gelu=True, input_scale=block.lin2.input_scale
        )
        self._add(hidden, block.lin2, x, x, statistics, following)

    def _input(self, weight: HopperLinear, buffer: Tensor, rows: int) -> Tensor:
        """Of a layer [rows, K], in a buffer: its rows as the layer's weight has them."""
        inner = weight.matrix.shape[1]
        if weight.scale is None:
            return buffer[:rows, :inner]
        return buffer.view(weight.matrix.dtype).flatten()[: rows * inner].view(rows, inner)

    def _normalised(
        self,
        x: Tensor,
        weight: HopperLinear,
        out: Tensor,
        statistics: Tensor,
        gelu: bool = False,
        input_scale: Tensor | None = None,
    ) -> None:
        """``out`` = a linear layer of the normalised ``x``, e4m3 if the next layer's input is."""
        rows = x.shape[0]
        linear_layer(
            Linear(
                x if weight.scale is None else self._quantised_x[:rows],
                weight.matrix,
                weight.bias,
                out if input_scale is None else None,
                statistics,
                gelu=gelu,
                eps=self.config.layer_norm_eps,
                weight_scale=weight.scale,
                quantised=None if input_scale is None else out,
                quantised_scale=input_scale,
            )
        )

    def _add(
        self,
        a: Tensor,
        weight: HopperLinear,
        x: Tensor,
        residual: Tensor,
        statistics: Tensor,
        following: HopperLinear | None,
    ) -> None:
        """``x`` = residual + a linear layer; in e4m3 as well, where the layer after the norm that
        follows takes that."""
        scale = None if following is None else following.input_scale
        linear_layer(
            Linear(
                a,
                weight.matrix,
                weight.bias,
                x,
                statistics,
                residual,
                weight_scale=weight.scale,
                quantised=None if scale is None else self._quantised_x[: x.shape[0]],
                quantised_scale=scale,
            )
        )

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
        self._quantised_x = empty(rows if self._fp8 else 0, channels, dtype=torch.float8_e4m3fn)
        self._attended = empty(rows, channels)
        self._workspace = empty(rows, max(3 * channels, config.mlp_dim))
        # Of each row of x: at most so many parts.
        self._statistics = empty(channels // 128 * rows * 2, dtype=torch.float32)
        self._schedules: dict[int, Tensor] = {}

    def _pack(self, parameters: EncoderParameters, max_batch_size: int) -> None:
        config, matrix = self.config, parameters.matrix
        channels = config.embed_dim
        self._patch = HopperLinear(
            matrix("patch_embed.proj.weight").view(channels, -1),
            parameters.fp32("patch_embed.proj.bias"),
        )
        pos_embed = matrix("pos_embed").view(-1, channels)
        repeats = len(pos_embed) % REPEATED_ROWS == 0
        self._pos_embed = pos_embed if repeats else pos_embed.repeat(max_batch_size, 1)

        self._fp8 = parameters.fp8 is not None and bool(parameters.fp8.linears)
        self._blocks = [pack_block(parameters, index) for index in range(config.depth)]

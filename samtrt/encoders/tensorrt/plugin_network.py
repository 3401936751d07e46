"""The image encoder with its attention, or with its blocks whole, as layers of the plugin.

With all plugins the trunk is the schedule of ``samtrt.encoders.cuda.hopper``: five launches a
block, the norms inside the linear layers around them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.hopper import HopperTrunk
from samtrt.encoders.cuda.hopper_block import pack_block, rel_pos_tables
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.tensorrt.launches import Batched, Operands, PluginLayer, plugin_layer
from samtrt.encoders.tensorrt.recording import RecordedTensor, Recording
from samtrt.errors import EngineError
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper import global_attention as over_grid
from samtrt.kernels.hopper import window_attention as over_window
from samtrt.kernels.hopper.launch import Launch
from samtrt.kernels.hopper.linear import (
    REPEATED_ROWS,
    Linear,
    linear_launch,
    statistics_parts,
)
from samtrt.modeling import functional as F
from samtrt.modeling.bound import BoundImageEncoder
from samtrt.modeling.image_encoder import Block, ImageEncoderViT
from samtrt.modeling.network import active_network

# Of an H100 or H200 (SXM): what launches are dealt out to where there is no GPU to ask. They run on
# any GPU of compute capability 9.0.
PROCESSORS = 132


def use_plugins(
    model: ImageEncoderViT,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    plugins: str,
    max_batch_size: int,
) -> None:
    """Makes the plugin's layers of a bound encoder's attention ("attention") or trunk ("all").

    Raises:
        EngineError: the kernels do not know these sizes or this type, or NVRTC is missing.
    """
    dtype = model.patch_embed.proj.weight.dtype
    if dtype != torch.float16:
        raise EngineError(
            f"the plugins compute in fp16, and the network is to be in {str(dtype)[6:]}; "
            "choose --precision fp16, or --plugins none"
        )
    if not (config.is_uniform and HopperTrunk.supports(config)):
        raise EngineError(
            "the plugins have no kernels for the sizes of this encoder; choose --plugins none"
        )
    parameters = EncoderParameters(config, tensors, dtype, torch.device("cpu"))
    layers = _Layers(parameters, max_batch_size, _processors())
    if plugins == "all":
        model.__class__ = _PluginEncoder
        model.layers = layers  # type: ignore[assignment]
        return
    for index, block in enumerate(model.blocks):
        block.__class__ = _AttentionBlock
        block.attended = layers.attention(  # type: ignore[assignment]
            index, rel_pos_tables(parameters, index), parameters.padding(index)
        )


def _processors() -> int:
    return multiprocessors(torch.device("cuda")) if torch.cuda.is_available() else PROCESSORS


class _AttentionBlock(Block):
    attended: PluginLayer  # window_partition to window_unpartition

    def _attend(self, x: RecordedTensor) -> RecordedTensor:
        (attended,) = _network().add_plugin("attention", [self.attn.qkv(x)], self.attended)
        projected: RecordedTensor = self.attn.proj(attended)
        return projected


class _PluginEncoder(BoundImageEncoder):
    layers: "_Layers"

    def trunk(self, x: RecordedTensor) -> tuple[RecordedTensor, list[RecordedTensor]]:
        layers, config = self.layers, self.layers.config
        side, patch = config.grid_size, config.patch_size
        patches = F.view(x, (-1, x.shape[1], side, patch, side, patch))
        patches = F.permute(patches, (0, 2, 4, 1, 3, 5))
        patches = F.view(patches, (-1, side, side, x.shape[1] * patch * patch))
        with _scope("patch_embed"):
            x, *statistics = _network().add_plugin("proj", [patches], layers.patch_embed())
        tapped = []
        for index in range(config.depth):
            x, *statistics = self._block(index, x, statistics)
            if index in self.taps:
                tapped.append(F.permute(x, (0, 3, 1, 2)))
        return x, tapped

    def _block(
        self, index: int, x: RecordedTensor, statistics: Sequence[RecordedTensor]
    ) -> tuple[RecordedTensor, ...]:
        """``Block.forward``; see ``HopperTrunk``. The stream and, but for the last, statistics."""
        layers, add = self.layers, _network().add_plugin
        block = pack_block(layers.parameters, index)
        qkv = layers.normalised(block.qkv.matrix, block.qkv.bias)
        attention = layers.attention(index, block.rel_pos, block.padding)
        proj = layers.residual(block.proj.matrix, block.proj.bias)
        lin1 = layers.normalised(block.lin1.matrix, block.lin1.bias, gelu=True)
        is_last = index == layers.config.depth - 1
        lin2 = layers.residual(block.lin2.matrix, block.lin2.bias, is_last=is_last)
        with _scope(f"blocks.{index}"):
            (attended,) = add("attn.attention", add("attn.qkv", [x, *statistics], qkv), attention)
            x, *statistics = add("attn.proj", [attended, x], proj)
            (hidden,) = add("mlp.lin1", [x, *statistics], lin1)
            return add("mlp.lin2", [hidden, x], lin2)


class _Layers:
    """Makes layers for 1…max_batch_size pictures of one encoder."""

    def __init__(self, parameters: EncoderParameters, max_batch_size: int, processors: int) -> None:
        self.parameters, self.config = parameters, parameters.config
        self.max_batch_size, self.processors = max_batch_size, processors
        # A layer of whose launches for each batch size all layers have the same.
        self._schedule = cache(self._make_schedule)

    def patch_embed(self) -> PluginLayer:
        """``x + pos_embed`` of patches [B, h, w, 3 · P · P]: the stream and its statistics."""
        channels = self.config.embed_dim
        weight = self.parameters.matrix("patch_embed.proj.weight").view(channels, -1)
        pos_embed = self.parameters.matrix("pos_embed").view(-1, channels)
        return self.residual(weight, self.parameters.fp32("patch_embed.proj.bias"), pos_embed)

    def normalised(self, weight: Tensor, bias: Tensor, gelu: bool = False) -> PluginLayer:
        """A linear layer of the normalised stream; inputs: the stream, its statistics."""
        columns, inner = weight.shape
        eps = self.config.layer_norm_eps

        def launch_of(batch: int) -> tuple[Launch, Operands]:
            rows = self._rows(batch)
            x, out = self._half(rows, inner), self._half(rows, columns)
            statistics = self._statistics(rows)
            layer = Linear(x, weight, bias, out, statistics, gelu=gelu, eps=eps)
            operands = Operands((x, statistics), (out,), (weight, bias))
            return linear_launch(layer, self.processors), operands

        types = (torch.float16, torch.float32)
        return plugin_layer(types, [self._tokens(columns)], self.max_batch_size, launch_of)

    def residual(
        self, weight: Tensor, bias: Tensor, added: Tensor | None = None, is_last: bool = False
    ) -> PluginLayer:
        """The stream plus a linear layer; outputs: the stream and, unless it is the last, its
        statistics.

        Inputs: what is multiplied, and the stream, unless ``added`` [h · w, C] stands for it.
        """
        columns, inner = weight.shape

        def launch_of(batch: int) -> tuple[Launch, Operands]:
            rows = self._rows(batch)
            a, out = self._half(rows, inner), self._half(rows, columns)
            statistics = self._statistics(rows)
            if added is None:
                x = self._half(rows, columns)
                inputs, constants = (a, x), (weight, bias)
            else:
                x = added if len(added) % REPEATED_ROWS == 0 else added.repeat(batch, 1)
                inputs, constants = (a,), (weight, bias, x)  # type: ignore[assignment]
            layer = Linear(a, weight, bias, out, statistics, x)
            # (an output that nobody reads is not one that TensorRT promises memory for)
            written, unread = ((out,), (statistics,)) if is_last else ((out, statistics), ())
            operands = Operands(inputs, written, constants, unread)
            return linear_launch(layer, self.processors), operands

        # At most so many parts; the shape itself is nobody's but the kernels'.
        numbers = 2 * self._rows(1) * (columns // 128)
        outputs = [self._tokens(columns), Batched((numbers,), torch.float32)][: 2 - is_last]
        types = (torch.float16,) * (2 if added is None else 1)
        return plugin_layer(types, outputs, self.max_batch_size, launch_of)

    def attention(self, index: int, rel_pos: Tensor, padding: Tensor) -> PluginLayer:
        """A block's attention of the ``qkv`` of its real tokens [B, h, w, 3 · C].

        Args:
            rel_pos, padding: see ``HopperBlock``.
        """
        config = self.config
        side, heads, channels = config.grid_size, config.num_heads, config.embed_dim
        table_h, table_w = rel_pos[0], rel_pos[1]

        def launch_of(batch: int) -> tuple[Launch, Operands]:
            qkv = self._half(batch, side, side, 3 * channels)
            out = self._half(batch, side, side, channels)
            if config.is_global(index):
                launch = over_grid.global_launch(qkv, table_h, table_w, out, heads, self.processors)
                return launch, Operands((qkv,), (out,), (table_h, table_w))
            schedule = self._schedule(batch)
            launch = over_window.window_launch(
                qkv, padding, rel_pos, schedule, out, config.window_size, heads
            )
            return launch, Operands((qkv,), (out,), (padding, rel_pos, schedule))

        outputs = [self._tokens(channels)]
        return plugin_layer([torch.float16], outputs, self.max_batch_size, launch_of)

    def _make_schedule(self, batch: int) -> Tensor:
        config, side = self.config, self.config.grid_size
        return over_window.window_schedule(
            batch, side, side, config.window_size, config.num_heads, self.processors
        )

    def _rows(self, batch: int) -> int:
        return batch * self.config.grid_size**2

    def _half(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float16, device="meta")

    def _statistics(self, rows: int) -> Tensor:
        parts = statistics_parts(rows, self.config.embed_dim, self.processors)
        return torch.empty(parts, rows, 2, device="meta")

    def _tokens(self, channels: int) -> Batched:
        side = self.config.grid_size
        return Batched((side, side, channels), torch.float16)


def _network() -> Recording:
    network = active_network()
    assert isinstance(network, Recording)
    return network


def _scope(path: str) -> AbstractContextManager[None]:
    return _network().scope(path)

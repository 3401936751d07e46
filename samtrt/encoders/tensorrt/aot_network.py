"""The image encoder with its attention as NVIDIA's ahead-of-time Python plugins (TensorRT 10.14 and
newer): the Triton kernels of ``samtrt.kernels.triton`` as PTX, which the engine itself holds.

Such a plugin launches one kernel, has no workspace and no descriptors; so what the relative
positions of a global block are computed to is an output of a layer of its own.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.portable import PORTABLE
from samtrt.encoders.tensorrt.launches import AotLayer, Batched
from samtrt.encoders.tensorrt.recording import RecordedTensor, Recording
from samtrt.errors import EngineError
from samtrt.kernels.triton.ahead_of_time import Ptx, compiled
from samtrt.kernels.triton.global_attention import global_launch, relative_launch, row_block
from samtrt.kernels.triton.launch import Launch
from samtrt.kernels.triton.window_attention import (
    split_head_dim,
    window_launch,
    window_places,
    window_table,
)
from samtrt.modeling import functional as F
from samtrt.modeling.image_encoder import Block, ImageEncoderViT
from samtrt.modeling.network import active_network

_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_Attention = Callable[[RecordedTensor], RecordedTensor]  # of qkv


def use_aot_plugins(
    model: ImageEncoderViT, config: EncoderConfig, tensors: Mapping[str, np.ndarray]
) -> None:
    """Makes ahead-of-time plugins of a bound encoder's attention.

    Raises:
        EngineError: the kernels do not know these sizes or this type, or Triton is missing.
    """
    dtype = model.patch_embed.proj.weight.dtype
    if dtype not in (torch.float16, torch.bfloat16):
        raise EngineError(
            f"the plugins compute in fp16 or bf16, and the network is to be in {str(dtype)[6:]}; "
            "choose --precision fp16 or bf16, or --plugins none"
        )
    if not _has_kernels(config):
        raise EngineError(
            "the plugins have no kernels for the sizes of this encoder; choose --plugins none"
        )
    layers = _Layers(EncoderParameters(config, tensors, dtype, torch.device("cpu")))
    for index, block in enumerate(model.blocks):
        block.__class__ = _AotBlock
        of_block = layers.over_grid if config.is_global(index) else layers.of_windows
        block.attended = of_block(index)  # type: ignore[assignment]


def _has_kernels(config: EncoderConfig) -> bool:
    if not config.is_uniform:
        return False
    kinds = set(map(config.is_global, range(config.depth)))
    try:
        split_head_dim(config.head_dim)
        if True in kinds:
            row_block(config.grid_size)
        if False in kinds:
            window_places(config.window_size)
    except EngineError:
        return False
    return True


class _AotBlock(Block):
    attended: _Attention  # window_partition to window_unpartition

    def _attend(self, x: RecordedTensor) -> RecordedTensor:
        projected: RecordedTensor = self.attn.proj(self.attended(self.attn.qkv(x)))
        return projected


class _Layers:
    """Attention of one encoder's blocks; each kernel is compiled once."""

    def __init__(self, parameters: EncoderParameters) -> None:
        self.parameters, self.config = parameters, parameters.config
        self.dtype = parameters.dtype
        self._compiled: dict[str, AotLayer] = {}

    def of_windows(self, index: int) -> _Attention:
        """See ``window_attention``."""
        config = self.config
        side, heads = config.grid_size, config.num_heads
        launch = window_launch(
            1, side, side, config.window_size, heads, config.head_dim, PORTABLE.window
        )
        table = window_table(*self.parameters.rel_pos(index), config.window_size)
        layer = self._layer(
            "window_attention",
            launch,
            dict.fromkeys(("qkv_ptr", "bias_ptr", "table_ptr", "places_ptr"), self.dtype),
            {"out_ptr": self._tokens()},
        )
        constants = {
            "attn.padding": self.parameters.padding(index),
            "attn.rel_pos": table.to(self.dtype),
            "attn.places": window_places(config.window_size).to(self.dtype),
        }

        def attended(qkv: RecordedTensor) -> RecordedTensor:
            inputs = [qkv, *_recorded(constants)]
            (out,) = _network().add_aot_plugin("attention", inputs, layer)
            return out

        return attended

    def over_grid(self, index: int) -> _Attention:
        """See ``relative_positions`` and ``global_attention``."""
        config = self.config
        side, heads, head_dim = config.grid_size, config.num_heads, config.head_dim
        rel_h = Batched((heads, side, side * side), torch.float32)
        rel_w = Batched((heads, side * side, row_block(side)), self.dtype)
        positions = self._layer(
            "relative_positions",
            relative_launch(1, side, side, heads, head_dim),
            dict.fromkeys(("qkv_ptr", "table_h_ptr", "table_w_ptr"), self.dtype),
            {"rel_h_ptr": rel_h, "rel_w_ptr": rel_w},
        )
        attention = self._layer(
            "global_attention",
            global_launch(1, side, side, heads, head_dim, PORTABLE.globals),
            {"qkv_ptr": self.dtype, "rel_h_ptr": rel_h.dtype, "rel_w_ptr": rel_w.dtype},
            {"out_ptr": self._tokens()},
        )
        tables = {
            f"attn.rel_pos_{axis}": (table * head_dim**0.5).to(self.dtype)
            for axis, table in zip("hw", self.parameters.rel_pos(index), strict=True)
        }

        def attended(qkv: RecordedTensor) -> RecordedTensor:
            add = _network().add_aot_plugin
            relative = add("relative_positions", [qkv, *_recorded(tables)], positions)
            (out,) = add("attention", [qkv, *relative], attention)
            return out

        return attended

    def _layer(
        self,
        plugin: str,
        launch: Launch,
        reads: Mapping[str, torch.dtype],
        writes: Mapping[str, Batched],
    ) -> AotLayer:
        """Of a launch for one picture; tensors by the names that the kernel has for them."""
        if plugin not in self._compiled:
            types = {**reads, **{name: output.dtype for name, output in writes.items()}}
            ptx = compiled(launch, {name: _TYPES[dtype] for name, dtype in types.items()})
            self._compiled[plugin] = AotLayer(
                plugin, tuple(writes.values()), _description(launch, ptx), ptx.text.encode()
            )
        return self._compiled[plugin]

    def _tokens(self) -> Batched:
        side = self.config.grid_size
        return Batched((side, side, self.config.embed_dim), self.dtype)


def _description(launch: Launch, ptx: Ptx) -> dict[str, object]:
    return {
        "function": ptx.function,
        "grid": list(launch.grid),
        "threads": ptx.threads,
        "shared_bytes": ptx.shared_bytes,
        "sizes": list(launch.sizes.values()),
    }


def _recorded(constants: Mapping[str, Tensor]) -> list[RecordedTensor]:
    return [F.constant(value, None, name) for name, value in constants.items()]


def _network() -> Recording:
    network = active_network()
    assert isinstance(network, Recording)
    return network

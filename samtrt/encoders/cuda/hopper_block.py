"""A transformer block's parameters as the kernels for Hopper take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.kernels.hopper.linear import fold_layer_norm
from samtrt.kernels.hopper.window_attention import window_table


@dataclass(frozen=True)
class HopperBlock:
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


def pack_block(parameters: EncoderParameters, index: int) -> HopperBlock:
    """One block's, on the device and in the compute type of ``parameters``."""
    fp32, matrix = parameters.fp32, parameters.matrix
    name = f"blocks.{index}."

    def folded(linear: str, norm: str) -> tuple[Tensor, Tensor]:
        weight, bias = fold_layer_norm(
            fp32(name + linear + ".weight"),
            fp32(name + linear + ".bias"),
            fp32(name + norm + ".weight"),
            fp32(name + norm + ".bias"),
        )
        return weight.to(parameters.dtype), bias

    qkv_weight, qkv_bias = folded("attn.qkv", "norm1")
    lin1_weight, lin1_bias = folded("mlp.lin1", "norm2")
    return HopperBlock(
        qkv_weight=qkv_weight,
        qkv_bias=qkv_bias,
        padding=matrix(name + "attn.qkv.bias"),
        rel_pos=rel_pos_tables(parameters, index),
        proj_weight=matrix(name + "attn.proj.weight"),
        proj_bias=fp32(name + "attn.proj.bias"),
        lin1_weight=lin1_weight,
        lin1_bias=lin1_bias,
        lin2_weight=matrix(name + "mlp.lin2.weight"),
        lin2_bias=fp32(name + "mlp.lin2.bias"),
    )


def rel_pos_tables(parameters: EncoderParameters, index: int) -> Tensor:
    """``HopperBlock.rel_pos`` of a block."""
    config, tables = parameters.config, parameters.rel_pos(index)
    if config.is_global(index):
        table = torch.stack(tables) * config.head_dim**0.5
    else:
        table = window_table(*tables, config.window_size)
    return table.to(parameters.dtype)

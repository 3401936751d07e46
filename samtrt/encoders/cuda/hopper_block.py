"""A transformer block's parameters as the kernels for Hopper take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.kernels.hopper.linear import ATTENDED_GROUP, QUANTISED_GROUP, quantised_order
from samtrt.kernels.hopper.window_attention import window_table


@dataclass(frozen=True)
class HopperLinear:
    """A linear layer; after a norm with that folded in.

    Attributes:
        matrix: [N, K] in the compute type; or e4m3, with its columns as the kernel before it
            writes them.
        bias: [N] fp32.
        scale: [N] fp32 of an e4m3 matrix.
        input_scale: [K] fp32 of an e4m3 matrix: what its input is multiplied by before it is
            rounded.
    """

    matrix: Tensor
    bias: Tensor
    scale: Tensor | None = None
    input_scale: Tensor | None = None


@dataclass(frozen=True)
class HopperBlock:
    """One packed transformer block.

    Attributes:
        padding: [3 * heads * D] in the compute type: what a padded token's row of ``qkv`` is.
        rel_pos: window: ``window_table``; global: [2, 2 * side - 1, D], h and w, times √D.
    """

    qkv: HopperLinear
    padding: Tensor
    rel_pos: Tensor
    proj: HopperLinear
    lin1: HopperLinear
    lin2: HopperLinear


def pack_block(parameters: EncoderParameters, index: int) -> HopperBlock:
    """One block's, on the device and in the compute type of ``parameters``."""

    def packed(name: str, group: int = QUANTISED_GROUP) -> HopperLinear:
        linear, plan = parameters.linear(index, name), parameters.fp8
        if plan is None or linear.scale is None:
            return HopperLinear(linear.weight, linear.bias)
        scale = plan.input_scale(index, name, parameters.config).to(parameters.device)
        matrix = quantised_order(linear.weight, group)
        return HopperLinear(matrix, linear.bias, linear.scale, scale.contiguous())

    return HopperBlock(
        qkv=packed("attn.qkv"),
        padding=parameters.padding(index),
        rel_pos=rel_pos_tables(parameters, index),
        proj=packed("attn.proj", ATTENDED_GROUP),
        lin1=packed("mlp.lin1"),
        lin2=packed("mlp.lin2"),
    )


def rel_pos_tables(parameters: EncoderParameters, index: int) -> Tensor:
    """``HopperBlock.rel_pos`` of a block."""
    config, tables = parameters.config, parameters.rel_pos(index)
    if config.is_global(index):
        table = torch.stack(tables) * config.head_dim**0.5
    else:
        table = window_table(*tables, config.window_size)
    return table.to(parameters.dtype)

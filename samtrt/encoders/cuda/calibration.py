"""From pictures to the scales of an FP8 encoder, and to weights rounded for what they meet."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.quantisation import (
    LINEARS,
    Fp8Plan,
    LinearName,
    PackedLinear,
    all_linears,
    in_order,
    scale_for,
)
from samtrt.encoders.cuda.rounding import round_weight
from samtrt.torch_state import as_written

# Says what is being done, before it is.
Announce = Callable[[str], None]


@dataclass
class _Input:
    """What one linear read.

    Attributes:
        largest: [K] magnitude by channel.
        products: [K, K] Σ a aᵀ, of rows a as the product's output has them: times 1 / σ.
    """

    largest: Tensor
    products: Tensor


@dataclass
class _Observed:
    """What all linears read, over all pictures."""

    inputs: dict[LinearName, _Input] = field(default_factory=dict)

    def __call__(self, name: LinearName, x: Tensor, factor: Tensor | None) -> None:
        weighted = x if factor is None else x * factor
        found = _Input(x.abs().amax(0), weighted.T @ weighted)
        known = self.inputs.setdefault(name, found)
        if known is not found:
            torch.maximum(known.largest, found.largest, out=known.largest)
            known.products += found.products


def calibrated_plan(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray] | Mapping[str, Tensor],
    pictures: Iterable[Tensor],
    device: torch.device | str = "cpu",
    announce: Announce = lambda text: None,
) -> Fp8Plan:
    """Every linear in e4m3, with scales from the pictures and weights rounded for them.

    The same parameters and pictures give the same plan on the same kind of device. Scales leave
    what was seen a headroom of four to eight; activations beyond saturate.

    Args:
        tensors: the encoder's parameters by Meta's names without ``image_encoder.``.
        pictures: [1, 3, S, S] fp32 each, normalised and padded, at least one.
        device: where it computes, in fp32.
        announce: is called for each picture, then for each block.
    """
    observed = _Observed()
    encoder = Fp8Reference(config, tensors, device=device, observe=observed)
    for number, picture in enumerate(pictures, 1):
        announce(f"calibration: picture {number}")
        encoder(picture.to(encoder.device))
    if not observed.inputs:
        raise ValueError("no picture to calibrate on")
    with as_written():
        return _plan(config, tensors, observed.inputs, encoder.device, announce)


def _plan(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray] | Mapping[str, Tensor],
    inputs: Mapping[LinearName, _Input],
    device: torch.device,
    announce: Announce,
) -> Fp8Plan:
    def scales(name: str) -> Tensor:
        return torch.stack([scale_for(inputs[b, name].largest) for b in range(config.depth)])

    plan = Fp8Plan(
        all_linears(config),
        residual_scale=torch.stack([scales("attn.qkv"), scales("mlp.lin1")], 1),
        attended_scale=scales("attn.proj"),
        # Of all channels, the smallest scale.
        hidden_scale=scales("mlp.lin2").amin(1),
    )
    parameters = EncoderParameters(config, tensors, torch.float32, device)
    packed = {}
    for block, name in in_order(plan.linears):
        if name == LINEARS[0]:
            announce(f"rounding the weights of block {block}")
        weight, bias = parameters.folded(block, name)
        rounded, scale = round_weight(
            weight, plan.input_scale(block, name, config), inputs[block, name].products
        )
        packed[block, name] = PackedLinear(rounded, bias, scale)
    return replace(plan, packed=packed)


def sensitivities(
    encoder: Fp8Reference, plan: Fp8Plan, pictures: Iterable[Tensor], announce: Announce
) -> dict[LinearName, float]:
    """How far each linear alone, in e4m3, moves the output: its relative L2, the root of the mean
    square over the pictures.

    Errors of linears that are rounded together add up like these squared, nearly.

    Args:
        encoder: its ``plan`` is set anew.
        plan: whose linears are measured.
        pictures: as ``calibrated_plan``'s.
    """
    pictures = [picture.to(encoder.device) for picture in pictures]
    encoder.plan = None
    expected = [encoder(picture) for picture in pictures]
    found = {}
    for linear in in_order(plan.linears):
        if linear[1] == LINEARS[0]:
            announce(f"what each linear layer of block {linear[0]} costs in FP8")
        encoder.plan = replace(plan, linears=frozenset({linear}))
        squares = [
            ((encoder(picture) - output).norm() / output.norm()).square()
            for picture, output in zip(pictures, expected, strict=True)
        ]
        found[linear] = torch.stack(squares).mean().sqrt().item()
    return found

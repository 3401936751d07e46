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
    name_of,
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
        rows: how many.
        smallest, largest: [K] value by channel.
        total: [K] sum.
        products: [K, K] Σ a aᵀ, of rows a as the product's output has them: times 1 / σ.
    """

    rows: int
    smallest: Tensor
    largest: Tensor
    total: Tensor
    products: Tensor

    def magnitude(self, offset: Tensor | float = 0.0) -> Tensor:
        """[K] the largest of |a − offset|."""
        return torch.maximum(self.largest - offset, offset - self.smallest)

    @property
    def mean(self) -> Tensor:
        return self.total / self.rows

    @property
    def centred_products(self) -> Tensor:
        """[K, K] Σ (a − mean)(a − mean)ᵀ."""
        return self.products - torch.outer(self.total, self.mean)


@dataclass
class _Observed:
    """What all linears read, over all pictures."""

    inputs: dict[LinearName, _Input] = field(default_factory=dict)

    def __call__(self, name: LinearName, x: Tensor, factor: Tensor | None) -> None:
        weighted = x if factor is None else x * factor
        found = _Input(len(x), *x.aminmax(dim=0), x.sum(0), weighted.T @ weighted)
        known = self.inputs.setdefault(name, found)
        if known is found:
            return
        known.rows += found.rows
        torch.minimum(known.smallest, found.smallest, out=known.smallest)
        torch.maximum(known.largest, found.largest, out=known.largest)
        known.total += found.total
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
        announce: is called some times for each block.
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
    def each_block(value: Callable[[int], Tensor]) -> Tensor:
        return torch.stack([value(block) for block in range(config.depth)])

    def of_stream(name: str) -> Tensor:
        return each_block(lambda block: scale_for(inputs[block, name].magnitude()))

    mean = each_block(lambda block: inputs[block, "attn.proj"].mean)
    plan = Fp8Plan(
        all_linears(config),
        residual_scale=torch.stack([of_stream("attn.qkv"), of_stream("mlp.lin1")], 1),
        attended_mean=mean,
        attended_scale=each_block(
            lambda block: scale_for(inputs[block, "attn.proj"].magnitude(mean[block]))
        ),
        hidden_scale=each_block(
            lambda block: scale_for(inputs[block, "mlp.lin2"].magnitude().max())
        ),
    )
    parameters = EncoderParameters(config, tensors, torch.float32, device, plan)
    packed = {}
    for block, name in in_order(plan.linears):
        if name == LINEARS[0]:
            announce(f"rounding the weights of block {block}")
        weight, bias = parameters.folded(block, name)
        read = inputs[block, name]
        rounded, scale = round_weight(
            weight,
            plan.input_scale(block, name, config),
            read.centred_products if name == "attn.proj" else read.products,
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
        announce(f"sensitivity of {name_of(linear)}")
        encoder.plan = replace(plan, linears=frozenset({linear}))
        squares = [
            ((encoder(picture) - output).norm() / output.norm()).square()
            for picture, output in zip(pictures, expected, strict=True)
        ]
        found[linear] = torch.stack(squares).mean().sqrt().item()
    return found

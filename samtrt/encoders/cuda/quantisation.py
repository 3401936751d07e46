"""FP8: which linear layers multiply in e4m3, with which scales, and how their weights are rounded.

A value v is stored as e4m3(v · s), saturating, with a static scale s. E4m3 is a floating type: the
scale places values inside its range, 2^-9 to 448, and does not change how finely they are rounded.
So scales are powers of two, which makes v · s and a weight over s exact in 16 bits too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.errors import InputError

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # finite value of e4m3
HEADROOM = 4.0  # what an activation may grow beyond those that were measured, at least
LINEARS = ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")

LinearName = tuple[int, str]  # block, one of LINEARS

_Value = TypeVar("_Value")
_PREFIX = "fp8."
_SCALES = ("residual_scale", "attended_scale", "hidden_scale")


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A linear layer as a kernel takes it: y = (a weightᵀ) ∘ scale + bias.

    After a LayerNorm (``attn.qkv``, ``mlp.lin1``) that norm is folded in: ``a`` is the residual
    stream, and the product wants the factor 1 / σ of each row before the bias.

    Attributes:
        weight: [N, K], e4m3 or the compute type, contiguous.
        bias: [N] fp32.
        scale: [N] fp32, with an e4m3 weight: of ``a`` as it is stored, its own scale included.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None

    def to(self, device: torch.device) -> "PackedLinear":
        """A copy on a device."""
        scale = None if self.scale is None else self.scale.to(device, copy=True)
        weight = self.weight.to(device, copy=True).contiguous()
        return PackedLinear(weight, self.bias.to(device, copy=True), scale)


@dataclass(frozen=True, eq=False)
class Fp8Plan:
    """Which linear layers of the trunk multiply in e4m3, and the scales of what they read.

    Attributes:
        linears: (block, one of ``LINEARS``); the others stay in the compute type.
        residual_scale: [depth, 2, C] fp32, by channel of the residual stream, where ``attn.qkv``
            and where ``mlp.lin1`` reads it.
        attended_scale: [depth, heads * D] fp32, by channel of what ``attn.proj`` reads. It is in
            the rows of ``attn.qkv`` that make V (``EncoderParameters.linear``), so that attention's
            output comes scaled: nothing is left to multiply.
        hidden_scale: [depth] fp32, of what ``mlp.lin2`` reads.
        packed: of ``linears``, those that were packed before, as an engine has them, the rows of V
            without ``attended_scale``; the others' weights are rounded to nearest.
    """

    linears: frozenset[LinearName]
    residual_scale: Tensor
    attended_scale: Tensor
    hidden_scale: Tensor
    packed: Mapping[LinearName, PackedLinear] = field(default_factory=dict)

    def only(self, linears: Iterable[LinearName]) -> "Fp8Plan":
        """The plan with these of its linears, and the others in the compute type."""
        return replace(self, linears=self.linears & frozenset(linears))

    def input_scale(self, block: int, linear: str, config: EncoderConfig) -> Tensor:
        """[K] fp32 of what a linear reads, by channel."""
        if linear == "mlp.lin2":
            return self.hidden_scale[block].expand(config.block_mlp_dim(block))
        if linear == "attn.proj":
            return self.attended_scale[block]
        return self.residual_scale[block, LINEARS.index(linear) // 2]

    def digest(self) -> str:
        """Twelve hexadecimal digits that other linears, scales or rounded weights change."""
        digest = hashlib.sha256(repr(in_order(self.linears)).encode())
        for name, tensor in sorted(self.to_tensors().items()):
            stored = tensor.contiguous().view(torch.uint8)
            if tensor.dtype == E4M3:  # hundreds of megabytes: in words, which is quick
                stored = stored.view(torch.int64).sum(dim=0)
            digest.update(name.encode() + stored.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def not_packed(self, tensors: Mapping[str, _Value]) -> dict[str, _Value]:
        """An encoder's tensors without the weights that are packed here."""
        packed = {
            f"blocks.{block}.{name}.weight" for block, name in self.linears & self.packed.keys()
        }
        return {name: value for name, value in tensors.items() if name not in packed}

    def to_tensors(self) -> dict[str, Tensor]:
        """All but ``linears``, by names that no parameter has."""
        tensors = {f"{_PREFIX}{name}": getattr(self, name) for name in _SCALES}
        for linear in in_order(self.linears & self.packed.keys()):
            packed, path = self.packed[linear], _PREFIX + name_of(linear)
            assert packed.scale is not None
            tensors |= {
                f"{path}.weight": packed.weight, f"{path}.scale": packed.scale,
                f"{path}.bias": packed.bias,
            }  # fmt: skip
        return tensors

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], linears: Iterable[LinearName]
    ) -> "Fp8Plan":
        """The plan that ``to_tensors`` took apart.

        Raises:
            KeyError: a tensor is missing.
        """
        linears = frozenset(linears)
        packed = {}
        for linear in linears:
            path = _PREFIX + name_of(linear)
            parts = (tensors[f"{path}.{part}"] for part in ("weight", "bias", "scale"))
            packed[linear] = PackedLinear(*parts)
        scales = {name: tensors[_PREFIX + name] for name in _SCALES}
        return cls(linears, **scales, packed=packed)


def all_linears(config: EncoderConfig) -> frozenset[LinearName]:
    """Every linear layer of the blocks."""
    return frozenset((block, name) for block in range(config.depth) for name in LINEARS)


def name_of(linear: LinearName) -> str:
    """As users write it: ``7.mlp.lin2``."""
    return f"{linear[0]}.{linear[1]}"


def parse_linears(texts: Iterable[str], config: EncoderConfig) -> frozenset[LinearName]:
    """What users name: ``7`` is all linears of that block, ``7.mlp.lin2`` one of them.

    Raises:
        InputError: there is no such block or linear.
    """
    found: set[LinearName] = set()
    for text in texts:
        block, _, name = text.strip().partition(".")
        names = LINEARS if not name else (name,)
        if not block.isdecimal() or int(block) >= config.depth or not set(names) <= set(LINEARS):
            raise InputError(
                f"{text.strip() or 'nothing'} is no linear layer of this encoder; expected a block "
                f"from 0 to {config.depth - 1}, or one of its layers, as 0.{', 0.'.join(LINEARS)}"
            )
        found |= {(int(block), each) for each in names}
    return frozenset(found)


def in_order(linears: Iterable[LinearName]) -> list[LinearName]:
    """By block, and within one as they run."""
    return sorted(linears, key=lambda linear: (linear[0], LINEARS.index(linear[1])))


def scale_for(largest: Tensor) -> Tensor:
    """The scale of values up to ``largest``: the greatest power of two that leaves ``HEADROOM``.

    A normal number of fp16, as the kernels have it. 1 where a value was always zero, or nothing was
    measured.
    """
    finite = torch.where(largest > 0, largest.float(), LARGEST / HEADROOM)
    return torch.exp2(torch.floor(torch.log2(LARGEST / HEADROOM / finite)).clamp(-14, 15))


def quantise(values: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """e4m3(values · scale), saturating."""
    return (values.float() * scale).clamp(-LARGEST, LARGEST).to(E4M3)


def quantise_weight(weight: Tensor, column_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A weight in e4m3 by output channel, rounded to nearest.

    Args:
        weight: [N, K] fp32.
        column_scale: [K] fp32, the scale of the K channels that it will be multiplied with.

    Returns:
        q [N, K] e4m3 and scale [N] fp32 with W ≈ q · scale[:, None] · column_scale.
    """
    if column_scale is not None:
        weight = weight / column_scale
    scale = row_scale(weight)
    return quantise(weight / scale[:, None]), scale


def row_scale(weight: Tensor) -> Tensor:
    """[N, K] → [N]: the largest magnitude of a row becomes e4m3's; 1 of a row of zeros."""
    largest = weight.abs().amax(1)
    return torch.where(largest > 0, largest / LARGEST, 1.0)

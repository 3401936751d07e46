"""The image encoder for inference: its parameters given, its layers bound to the op vocabulary.

The layers of the definition are torch's own. Here each becomes a subclass that calls
``samtrt.modeling.functional``, so that they compute as the CPU runtime does it, in mixed precision,
or add layers to the active network.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.errors import CheckpointError
from samtrt.modeling import functional as F
from samtrt.modeling.functional import Tensor
from samtrt.modeling.image_encoder import (
    Attention,
    AttentionKind,
    ImageEncoderViT,
    build_image_encoder,
    resize_rel_pos,
)
from samtrt.modeling.layers import LayerNorm2d


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class _LayerNorm2d(LayerNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps, axis=1)


class _GELU(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class BoundImageEncoder(ImageEncoderViT):
    """Pictures [B, 3, S, S] float32 → [B, *config.output_shape] float32, whatever the parameters'
    dtype."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.cast(x, self.patch_embed.proj.weight.dtype)
        return F.cast(super().forward(x), torch.float32)


_BOUND: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.LayerNorm: _LayerNorm,
    LayerNorm2d: _LayerNorm2d,
    nn.GELU: _GELU,
}
_NORMS = (nn.LayerNorm, LayerNorm2d)
_TABLES = ("rel_pos_h", "rel_pos_w")  # of any length: they are interpolated


def bound_encoder(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray] | Mapping[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    attention: AttentionKind = "fused",
) -> ImageEncoderViT:
    """An image encoder for inference.

    Args:
        tensors: its parameters under Meta's names without ``image_encoder.``; their memory is
            shared where nothing has to be converted.
        dtype: what it computes in; the norms' parameters keep float32 at least.
        attention: "fused" uses the back end's attention operator, "plain" spells attention out.

    Raises:
        CheckpointError: names every missing, unexpected or wrongly shaped tensor.
    """
    with torch.device("meta"):
        encoder = build_image_encoder(config, BoundImageEncoder)
    _check(encoder, tensors)
    for path, module in encoder.named_modules():
        precise = torch.promote_types(dtype, torch.float32) if isinstance(module, _NORMS) else dtype
        for name in module._parameters:
            if module._parameters[name] is not None:
                stored = stored_tensor(tensors[f"{path}.{name}" if path else name])
                if name in _TABLES:
                    rows = len(module._parameters[name])
                    stored = resize_rel_pos(stored.float(), (rows + 1) // 2)
                value = stored.to(precise).contiguous()
                module._parameters[name] = nn.Parameter(value, requires_grad=False)
        if isinstance(module, Attention):
            module.fused = attention == "fused"
        module.__class__ = _BOUND.get(type(module), type(module))
    return encoder.eval()


def trainable_encoder(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> ImageEncoderViT:
    """An image encoder as a tree of torch's layers, fp32 on the CPU, in eval mode.

    Args:
        tensors: as ``bound_encoder``'s; memory that can be written to is used, not copied.

    Raises:
        CheckpointError: see ``bound_encoder``.
    """
    with torch.device("meta"):  # no memory, and no random numbers of the caller's
        encoder = build_image_encoder(config)
    _check(encoder, tensors)
    with torch.inference_mode(False):
        for path, module in encoder.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    stored = tensors[f"{path}.{name}" if path else name]
                    if stored.dtype != np.float32 or not stored.flags.writeable:
                        stored = stored.astype(np.float32)
                    module._parameters[name] = nn.Parameter(torch.from_numpy(stored))
    return encoder.eval()


def stored_tensor(value: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A stored parameter as a torch tensor, without gradients, of the same memory."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    with warnings.catch_warnings():
        # A memory-mapped array is read-only, which torch warns of; nobody writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(value)


def _check(encoder: nn.Module, tensors: Mapping[str, Any]) -> None:
    expected = {name: list(parameter.shape) for name, parameter in encoder.named_parameters()}
    faults = [f"missing {name}" for name in expected if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in expected]
    for name, shape in expected.items():
        free = name.endswith(_TABLES)
        found = list(tensors[name].shape) if name in tensors else shape
        if len(found) != len(shape) or found[free:] != shape[free:]:
            faults.append(f"{name} has shape {found}, expected {_shape_text(shape, free)}")
    if faults:
        raise CheckpointError(f"the parameters do not fit the model: {'; '.join(faults)}")


def _shape_text(shape: Sequence[int], free: bool) -> str:
    return "[" + ", ".join(["any" if free else str(shape[0]), *map(str, shape[1:])]) + "]"

"""Image encoders of SAM's family by Meta's encoder and what each project does to it."""

import numpy as np
import torch
import torch.nn.functional as F
from oracle import meta_encoder_of, tiny_config, to_torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import Parameters

FAMILY = {
    "taps": tiny_config(taps=(0, 2)),
    "strided": tiny_config(strided_chans=(24, 40), img_size=112),  # 7 tokens, 4, 2
    "readout": tiny_config(
        patch_size=8, img_size=64, readout_chans=3, global_attn_indexes=(0, 1, 2), window_size=8
    ),
}


def plain(parameters: Parameters) -> tuple[EncoderConfig, dict[str, np.ndarray]]:
    """Sizes and tensors of the encoder up to its neck."""
    heads = ("net_", "out.")
    tensors = {n: t for n, t in parameters.encoder().items() if not n.startswith(heads)}
    sizes = {"taps": (), "strided_chans": (), "readout_chans": 0}
    return EncoderConfig(**{**vars(parameters.encoder_config), **sizes}), tensors


@torch.no_grad()
def with_taps(parameters: Parameters, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The embedding and every block's output [B, C, h, w], by Meta's package."""
    encoder = meta_encoder_of(*plain(parameters), x.dtype)
    found: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda *given: found.append(given[-1].permute(0, 3, 1, 2)))
    return encoder(x), found


@torch.no_grad()
def deep_encoder(parameters: Parameters, x: Tensor) -> Tensor:
    """sam_vary_sdpa.py: two convolutions of stride 2 without bias after the neck."""
    tensors = {name: t.to(x.dtype) for name, t in to_torch(parameters.encoder()).items()}
    x = meta_encoder_of(*plain(parameters), x.dtype)(x)
    x = F.conv2d(x, tensors["net_2.weight"], stride=2, padding=1)
    return F.conv2d(x, tensors["net_3.weight"], stride=2, padding=1)


@torch.no_grad()
def cellpose(parameters: Parameters, x: Tensor) -> Tensor:
    """vit_sam.py: a 1×1 convolution, and W2, the identity, as a transposed convolution."""
    tensors = {name: t.to(x.dtype) for name, t in to_torch(parameters.encoder()).items()}
    patch = parameters.encoder_config.patch_size
    x = meta_encoder_of(*plain(parameters), x.dtype)(x)
    x = F.conv2d(x, tensors["out.weight"], tensors["out.bias"])
    chans = len(tensors["out.weight"])
    identity = torch.eye(chans, dtype=x.dtype).reshape(chans, chans // patch**2, patch, patch)
    return F.conv_transpose2d(x, identity, stride=patch)


def expected(name: str, parameters: Parameters, x: Tensor) -> Tensor:
    """The output of a model of ``FAMILY``, computed in x's dtype."""
    if name == "taps":
        embedding, taps = with_taps(parameters, x)
        return torch.cat([embedding, *(taps[i] for i in parameters.encoder_config.taps)], 1)
    return (deep_encoder if name == "strided" else cellpose)(parameters, x)

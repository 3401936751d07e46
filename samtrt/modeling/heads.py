"""What some models of SAM's family have at the end of the image encoder: taps (SAM-HQ, CellViT),
strided convolutions (DeepEncoder), a readout (Cellpose-SAM)."""

from collections.abc import Iterator

import torch
from torch import nn

from samtrt.checkpoints.config import READOUT_LAYER, STRIDED_LAYERS, EncoderConfig
from samtrt.modeling import functional as F
from samtrt.modeling.functional import Tensor


def heads(config: EncoderConfig) -> Iterator[tuple[str, nn.Conv2d]]:
    """The layers after the neck, by their names, in the order that they are called."""
    channels = config.out_chans
    for name, strided in zip(STRIDED_LAYERS, config.strided_chans, strict=False):
        yield name, nn.Conv2d(channels, strided, 3, stride=2, padding=1, bias=False)
        channels = strided
    if config.readout_chans:
        pixels = config.patch_size**2
        yield READOUT_LAYER, nn.Conv2d(channels, config.readout_chans * pixels, 1)


def read_out(x: Tensor, patch_size: int) -> Tensor:
    """[B, C·P², h, w] → [B, C, h·P, w·P]: each token's channels are its patch's pixels."""
    _, channels, height, width = x.shape
    x = F.view(x, (-1, patch_size, patch_size, height, width))
    x = F.permute(x, (0, 3, 1, 4, 2))
    return F.view(x, (-1, channels // patch_size**2, height * patch_size, width * patch_size))


def split_taps(output: torch.Tensor, config: EncoderConfig) -> tuple[torch.Tensor, ...]:
    """The embedding [B, out_chans, h, w] of an encoder's output, and each tap [B, C, h, w]."""
    return output.split([config.out_chans] + [config.embed_dim] * len(config.taps), dim=1)

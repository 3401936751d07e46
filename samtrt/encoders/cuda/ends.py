"""What some encoders of SAM's family have beside the embedding: taps, and layers after the neck.

The layers are torch's and cuDNN's: after the neck little is left to compute.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.checkpoints.config import READOUT_LAYER, STRIDED_LAYERS
from samtrt.encoders.cuda.packing import EncoderParameters

# By block, where its output goes: [B, C, h, w] fp32, of any strides.
Taps = Mapping[int, Tensor]


def write_tap(out: Tensor, x: Tensor, shift: Tensor | None = None) -> None:
    """A residual stream [B * h * w, C], and what it still lacks [C], into [B, C, h, w] fp32."""
    rows = x.float() if shift is None else x.float() + shift
    batch, channels, height, width = out.shape
    out.copy_(rows.view(batch, height, width, channels).permute(0, 3, 1, 2))


def convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """A 3 × 3 convolution with a border of zeros, without a bias."""
    if x.is_cpu:
        return F.conv2d(x, weight, stride=stride, padding=1)
    # cuDNN itself: F.conv2d follows what the process has set in torch.backends.cudnn.
    return torch.cudnn_convolution(
        x,
        weight,
        padding=(1, 1),
        stride=(stride, stride),
        dilation=(1, 1),
        groups=1,
        benchmark=False,
        deterministic=True,
        allow_tf32=False,
    )


class End:
    """From the embedding to the encoder's output."""

    def __init__(self, parameters: EncoderParameters, max_batch_size: int) -> None:
        self.config = config = parameters.config
        self.dtype = parameters.dtype
        self._strided = [
            parameters.matrix(f"{name}.weight").to(memory_format=torch.channels_last)
            for name, _ in zip(STRIDED_LAYERS, config.strided_chans, strict=False)
        ]
        if config.readout_chans:
            channels = config.readout_chans * config.patch_size**2
            weight = parameters.matrix(f"{READOUT_LAYER}.weight")
            self._readout = weight.view(channels, config.out_chans)
            self._readout_bias = parameters.matrix(f"{READOUT_LAYER}.bias")
        self._output = parameters.empty(max_batch_size, *config.output_shape, dtype=torch.float32)

    def taps(self, batch: int) -> Taps:
        """Where a trunk puts the output of the tapped blocks."""
        start, channels = self.config.out_chans, self.config.embed_dim
        parts = self._output[:batch, start:].split(channels, 1) if self.config.taps else ()
        return dict(zip(self.config.taps, parts, strict=True))

    def __call__(self, embedding: Tensor) -> Tensor:
        """[B, out_chans, h, w] fp32 → the output [B, *config.output_shape] fp32, in a buffer."""
        output = self._output[: len(embedding)]
        if self.config.taps:
            output[:, : self.config.out_chans].copy_(embedding)
            return output
        x = embedding.to(self.dtype)
        if self._strided:
            for weight in self._strided:
                x = convolve(x, weight, stride=2)
            return output.copy_(x)
        x = F.linear(x.permute(0, 2, 3, 1), self._readout, self._readout_bias)
        chans, patch = self.config.readout_chans, self.config.patch_size
        batch, height, width, _ = x.shape
        pixels = x.view(batch, height, width, chans, patch, patch).permute(0, 3, 1, 4, 2, 5)
        output.view(batch, chans, height, patch, width, patch).copy_(pixels)
        return output

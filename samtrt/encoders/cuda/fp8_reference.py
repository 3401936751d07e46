"""What an encoder with e4m3 linears computes, in torch on any device: a reference for the kernels.

Everything is fp32 but what the plan rounds to e4m3, and the residual stream, which is kept in fp16.
Calibration observes it, and measures on it what each linear costs in accuracy.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.quantisation import LINEARS, Fp8Plan, LinearName, quantise
from samtrt.encoders.protocol import check_pictures
from samtrt.kernels.device import resolved
from samtrt.modeling.bound import bound_encoder
from samtrt.modeling.functional import window_partition, window_unpartition
from samtrt.modeling.image_encoder import Block
from samtrt.torch_state import as_written

# A linear, and what it reads: [rows, K] fp32; 1 / σ [rows, 1] where a norm is folded in.
Observe = Callable[[LinearName, Tensor, Tensor | None], None]


class Fp8Reference:
    """An ``ImageEncoder`` that rounds as the plan says.

    Attributes:
        plan: may be set anew; of linears that are not in ``plan.packed`` the weights are rounded
            at every call.
        stream: what the residual stream is kept in: fp16, or fp32, as if nothing were rounded.
        observe: is told of every linear.
    """

    computed_by = "torch, e4m3 in fp32"

    def __init__(
        self,
        config: EncoderConfig,
        tensors: Mapping[str, np.ndarray] | Mapping[str, Tensor],
        plan: Fp8Plan | None = None,
        device: torch.device | str = "cpu",
        observe: Observe | None = None,
    ) -> None:
        self.config, self.img_size = config, config.img_size
        self.device = resolved(device)
        self.plan, self.observe, self.stream = plan, observe, torch.float16
        self._tensors = tensors
        with as_written():
            self._encoder = bound_encoder(config, tensors).to(self.device)
            parameters = EncoderParameters(config, tensors, torch.float32, self.device)
            self._folded = {
                (block, name): parameters.folded(block, name)
                for block in range(config.depth)
                for name in LINEARS
            }
        for index, block in enumerate(self._encoder.blocks):
            assert isinstance(block, Block)
            block.forward = partial(self._block, index, block)  # type: ignore[method-assign]

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] fp32 → [B, *config.output_shape] fp32."""
        check_pictures(x, self.img_size, self.device, None)
        with as_written():
            return self._encoder(x)

    def _block(self, index: int, block: Block, x: Tensor) -> Tensor:
        """``Block.forward`` on tokens [B, H, W, C]."""
        config, side = self.config, self.config.grid_size
        x = self._kept(x)
        qkv = self._linear((index, "attn.qkv"), x, norm=True)
        window = 0 if config.is_global(index) else config.window_size
        if window:
            # A padded token's row is the bias, without the norm's.
            bias = block.attn.qkv.bias
            qkv = window_partition(qkv - bias, window) + bias
        attended = block.attn.attend(qkv)
        if window:
            attended = window_unpartition(attended, window, (side, side))
        x = self._kept(x + self._linear((index, "attn.proj"), attended))
        hidden = F.gelu(self._linear((index, "mlp.lin1"), x, norm=True))
        return self._kept(x + self._linear((index, "mlp.lin2"), hidden))

    def _linear(self, name: LinearName, x: Tensor, norm: bool = False) -> Tensor:
        factor = None
        if norm:
            variance = x.var(-1, correction=0, keepdim=True)
            factor = torch.rsqrt(variance + self.config.layer_norm_eps)
        if self.observe is not None:
            rows = None if factor is None else factor.flatten(0, -2)
            self.observe(name, x.flatten(0, -2), rows)
        product, bias = self._product(name, x)
        return (product if factor is None else product * factor) + bias

    def _product(self, name: LinearName, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.plan is None or name not in self.plan.linears:
            weight, bias = self._folded[name]
            return F.linear(x, weight), bias
        parameters = EncoderParameters(
            self.config, self._tensors, torch.float32, self.device, self.plan
        )
        packed = parameters.quantised(*name)
        assert packed.scale is not None
        stored = quantise(x, self.plan.input_scale(*name, self.config).to(self.device))
        return F.linear(stored.float(), packed.weight.float()) * packed.scale, packed.bias

    def _kept(self, x: Tensor) -> Tensor:
        return x.to(self.stream).float()

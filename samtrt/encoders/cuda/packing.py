"""An encoder's parameters on their way to the GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.quantisation import Fp8Plan, PackedLinear, quantise_weight
from samtrt.kernels.hopper.linear import fold_layer_norm
from samtrt.modeling.bound import stored_tensor
from samtrt.modeling.image_encoder import resize_rel_pos

_NORM_BEFORE = {"attn.qkv": "norm1", "mlp.lin1": "norm2"}


@dataclass(frozen=True)
class EncoderParameters:
    """Parameters under Meta's names without ``image_encoder.``, moved and cast as asked.

    What it gives out is memory of its own: a caller may change the tensors afterwards.

    Attributes:
        config: sizes of the encoder.
        tensors: any float type, anywhere.
        dtype: the compute type, fp16 or bf16.
        device: where they go.
        fp8: which linears are in e4m3; None for none.
    """

    config: EncoderConfig
    tensors: Mapping[str, np.ndarray | Tensor]
    dtype: torch.dtype
    device: torch.device
    fp8: Fp8Plan | None = None

    def fp32(self, name: str) -> Tensor:
        return self._copied(name).float()

    def matrix(self, name: str) -> Tensor:
        """In the compute type, contiguous."""
        return self._copied(name).to(self.dtype).contiguous()

    def linear(self, block: int, name: str) -> PackedLinear:
        """One of ``LINEARS`` of a block, in e4m3 where ``fp8`` says so, with the norm before it
        folded in, and the rows of ``attn.qkv`` that make V as ``attn.proj`` wants them."""
        is_fp8 = self._is_fp8(block, name)
        linear = self.quantised(block, name) if is_fp8 else PackedLinear(*self.folded(block, name))
        weight, bias, scale = linear.weight, linear.bias, linear.scale
        if name == "attn.qkv":
            factor = self._attended_scale(block)
            bias = bias * factor
            if scale is None:
                weight = weight * factor[:, None]
            else:
                scale = scale * factor
        return PackedLinear(weight if is_fp8 else weight.to(self.dtype), bias, scale)

    def folded(self, block: int, name: str) -> tuple[Tensor, Tensor]:
        """A linear with the norm before it folded in: weight [N, K] and bias [N] fp32."""
        path = f"blocks.{block}."
        weight, bias = self.fp32(f"{path}{name}.weight"), self.fp32(f"{path}{name}.bias")
        if name not in _NORM_BEFORE:
            return weight, bias
        norm = path + _NORM_BEFORE[name]
        return fold_layer_norm(weight, bias, self.fp32(norm + ".weight"), self.fp32(norm + ".bias"))

    def quantised(self, block: int, name: str) -> PackedLinear:
        """One of ``LINEARS`` in e4m3, the rows of V as they are."""
        assert self.fp8 is not None
        if (block, name) in self.fp8.packed:
            return self.fp8.packed[block, name].to(self.device)
        weight, bias = self.folded(block, name)
        column_scale = self.fp8.input_scale(block, name, self.config).to(self.device)
        values, scale = quantise_weight(weight, column_scale)
        return PackedLinear(values.contiguous(), bias, scale)

    def _is_fp8(self, block: int, name: str) -> bool:
        return self.fp8 is not None and (block, name) in self.fp8.linears

    def padding(self, block: int) -> Tensor:
        """``attn.qkv``'s output of a padded token, [3 * heads * D] in the compute type."""
        bias = self.fp32(f"blocks.{block}.attn.qkv.bias")
        return (bias * self._attended_scale(block)).to(self.dtype)

    def _attended_scale(self, block: int) -> Tensor:
        """The factor of ``attn.qkv``'s output [3 * heads * D]: 1, but for V where ``attn.proj`` is
        in e4m3."""
        columns = len(self.tensors[f"blocks.{block}.attn.qkv.bias"])
        factor = self.empty(columns, dtype=torch.float32).fill_(1.0)
        if self.fp8 is not None and self._is_fp8(block, "attn.proj"):
            factor[columns // 3 * 2 :] = self.fp8.attended_scale[block]
        return factor

    def _copied(self, name: str) -> Tensor:
        # To the device as it is: a GPU casts it faster than this side.
        return stored_tensor(self.tensors[name]).to(self.device, copy=True)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A buffer beside them, of the compute type unless told otherwise."""
        return torch.empty(*shape, dtype=dtype or self.dtype, device=self.device)

    def rel_pos(self, block: int) -> tuple[Tensor, Tensor]:
        """``rel_pos_h`` and ``rel_pos_w`` of a block, [2 * side - 1, D] fp32, as it uses them."""
        size = self.config.attention_size(block)
        tables = [self.fp32(f"blocks.{block}.attn.rel_pos_{axis}") for axis in "hw"]
        return resize_rel_pos(tables[0], size), resize_rel_pos(tables[1], size)

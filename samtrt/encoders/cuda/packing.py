"""An encoder's parameters on their way to the GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.modeling.bound import stored_tensor
from samtrt.modeling.image_encoder import resize_rel_pos


@dataclass(frozen=True)
class EncoderParameters:
    """Parameters under Meta's names without ``image_encoder.``, moved and cast as asked.

    What it gives out is memory of its own: a caller may change the tensors afterwards.

    Attributes:
        config: sizes of the encoder.
        tensors: any float type, anywhere.
        dtype: the compute type, fp16 or bf16.
        device: where they go.
    """

    config: EncoderConfig
    tensors: Mapping[str, np.ndarray | Tensor]
    dtype: torch.dtype
    device: torch.device

    def fp32(self, name: str) -> Tensor:
        return self._copied(name).float()

    def matrix(self, name: str) -> Tensor:
        """In the compute type, contiguous."""
        return self._copied(name).to(self.dtype).contiguous()

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

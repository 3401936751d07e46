"""The image encoder on a CUDA GPU: patches, trunk, neck, one graph a batch size."""

import os
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.hopper import HopperTrunk
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.portable import PortableTrunk
from samtrt.encoders.packed import DTYPES
from samtrt.encoders.protocol import check_pictures
from samtrt.errors import EngineError
from samtrt.kernels.device import architecture
from samtrt.kernels.digest import kernels_digest
from samtrt.kernels.triton.gemm import patchify
from samtrt.kernels.triton.norm import layer_norm, layer_norm_to_nchw

NECK_EPS = 1e-6  # LayerNorm2d of segment_anything/modeling/common.py


class Trunk(Protocol):
    """From patches to the residual stream after the last block.

    Attributes:
        name: of the kind.
        shift: [C] fp32, what that stream still lacks in every row.
    """

    name: str
    shift: Tensor

    def prepare(self, batch: int) -> None:
        """What must not be captured, before the first call of a batch size."""

    def __call__(self, patches: Tensor, batch: int) -> Tensor:
        """``patch_embed`` to ``blocks``: [B * H * W, 3 * P * P] → [B * H * W, C], compute type."""


class FusedImageEncoder:
    """SAM's image encoder on a CUDA GPU, fp16 or bf16; an ``ImageEncoder``.

    Calls share buffers, so one instance serves one stream at a time.

    Attributes:
        img_size: side S of the square input, in pixels.
        device: where the parameters are and the input must be.
        computed_by: see ``ImageEncoder``.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tensors: Mapping[str, np.ndarray | Tensor],
        precision: str = "fp16",
        device: str | torch.device = "cuda",
        max_batch_size: int = 1,
    ) -> None:
        """
        Args:
            config: sizes of the encoder.
            tensors: its parameters under Meta's names without ``image_encoder.``, any float type.
            precision: ``fp16`` or ``bf16``: weights and activations; sums are fp32 always.
            device: a CUDA device of compute capability 8.0 or newer. ``cpu`` works in Triton's
                interpreter (``TRITON_INTERPRET=1``), for tests.
            max_batch_size: pictures a call may have; buffers are made for as many.

        Raises:
            EngineError: the configuration, precision or device is not supported.
        """
        if precision not in ("fp16", "bf16"):
            raise EngineError(
                f"the cuda backend computes in fp16 or bf16, not in {precision}; "
                "use one of them, or the cpu backend for fp32"
            )
        if max_batch_size < 1:
            raise EngineError(f"max_batch_size must be at least 1, not {max_batch_size}")
        self.config = config
        self.img_size = config.img_size
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.max_batch_size = max_batch_size
        parameters = EncoderParameters(config, tensors, self.dtype, self.device)
        self._trunk = _trunk_for(parameters, max_batch_size)
        self.computed_by = " ".join(
            ("cuda", precision, self._trunk.name, architecture(self.device), kernels_digest())
        )
        self._pack_neck(parameters)
        self._allocate(parameters.empty)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] fp32, normalised and padded → [B, out_chans, S/16, S/16] fp32.

        The first call of a batch size compiles what is not in the kernels' cache and records a
        graph.

        Raises:
            InputError: another shape, type or device, or more than ``max_batch_size`` pictures.
        """
        check_pictures(x, self.img_size, self.device, self.max_batch_size)
        batch = x.shape[0]
        self._image[:batch].copy_(x)
        if self.device.type == "cpu":
            self._forward(batch)
        else:
            if batch not in self._graphs:
                self._graphs[batch] = self._record(batch)
            self._graphs[batch].replay()
        return self._embedding[:batch].clone()

    def _record(self, batch: int) -> torch.cuda.CUDAGraph:
        with torch.cuda.device(self.device):
            self._trunk.prepare(batch)
            # Once outside the graph: kernels are compiled and loaded, cuBLAS gets its workspace.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._forward(batch)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._forward(batch)
        return graph

    def _forward(self, batch: int) -> None:
        """``ImageEncoderViT.forward`` from ``_image`` to ``_embedding``."""
        side, out_chans = self.config.grid_size, self.config.out_chans
        rows = batch * side * side

        patches = self._patches[:rows]
        patchify(self._image[:batch], patches, self.config.patch_size)
        x = self._trunk(patches, batch)

        # neck: Conv2d 1×1, LayerNorm2d, Conv2d 3×3, LayerNorm2d
        narrow, normed = self._narrow[0, :rows], self._narrow[1, :rows]
        torch.mm(x, self._neck0_weight.t(), out=narrow)
        layer_norm(
            narrow, self._neck1_shift, self._neck1_weight, self._neck1_bias, normed, NECK_EPS
        )
        nchw = normed.view(batch, side, side, out_chans).permute(0, 3, 1, 2)
        nchw = F.conv2d(nchw, self._neck2_weight, padding=1)
        layer_norm_to_nchw(
            nchw.permute(0, 2, 3, 1).contiguous(),  # cuDNN keeps channels last: no copy
            self._neck3_weight,
            self._neck3_bias,
            self._embedding[:batch],
            NECK_EPS,
        )

    def _allocate(self, empty: Callable[..., Tensor]) -> None:
        config, batch = self.config, self.max_batch_size
        side = config.grid_size
        rows = batch * side * side

        self._image = empty(batch, 3, self.img_size, self.img_size, dtype=torch.float32)
        self._patches = empty(rows, 3 * config.patch_size**2)
        self._narrow = empty(2, rows, config.out_chans)
        self._embedding = empty(batch, config.out_chans, side, side, dtype=torch.float32)

    def _pack_neck(self, parameters: EncoderParameters) -> None:
        fp32 = parameters.fp32
        neck0 = fp32("neck.0.weight").view(self.config.out_chans, self.config.embed_dim)
        self._neck0_weight = neck0.to(self.dtype)
        # neck.0 is linear, so what the stream lacks passes through it.
        self._neck1_shift = neck0 @ self._trunk.shift
        self._neck1_weight, self._neck1_bias = fp32("neck.1.weight"), fp32("neck.1.bias")
        self._neck2_weight = parameters.matrix("neck.2.weight").to(
            memory_format=torch.channels_last
        )
        self._neck3_weight, self._neck3_bias = fp32("neck.3.weight"), fp32("neck.3.bias")


def _trunk_for(parameters: EncoderParameters, max_batch_size: int) -> Trunk:
    device = parameters.device
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return PortableTrunk(parameters, max_batch_size)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EngineError(
            f"the cuda backend needs an NVIDIA GPU and found none ({device}); "
            "use --backend cpu on this machine"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise EngineError(
            f"the cuda backend needs compute capability 8.0 or newer, this GPU has {major}.{minor}"
            "; use the tensorrt backend"
        )
    if major == 9 and HopperTrunk.supports(parameters.config):
        return HopperTrunk(parameters, max_batch_size)
    return PortableTrunk(parameters, max_batch_size)

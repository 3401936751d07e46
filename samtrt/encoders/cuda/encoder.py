"""The image encoder on a CUDA GPU: patches, trunk, neck, one graph a batch size."""

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.choice import CUDA_PRECISIONS, MIN_CUDA_CAPABILITY
from samtrt.encoders.cuda.ends import End, Taps, convolve
from samtrt.encoders.cuda.hopper import HopperTrunk
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.portable import PortableTrunk
from samtrt.encoders.cuda.quantisation import Fp8Plan
from samtrt.encoders.packed import DTYPES
from samtrt.encoders.protocol import (
    NotCopied,
    check_pictures,
    check_process,
    wait_when_deleted,
)
from samtrt.errors import EngineError
from samtrt.kernels.cublaslt import Products
from samtrt.kernels.device import architecture, resolved
from samtrt.kernels.digest import kernels_digest
from samtrt.kernels.graph import GraphedWork
from samtrt.kernels.hopper.linear import QUANTISED_GROUP
from samtrt.kernels.triton.gemm import patchify
from samtrt.kernels.triton.norm import layer_norm, layer_norm_to_nchw
from samtrt.kernels.triton.window_attention import split_head_dim
from samtrt.torch_state import as_written

NECK_EPS = 1e-6  # LayerNorm2d of segment_anything/modeling/common.py


class Trunk(Protocol):
    """From patches to the residual stream after the last block.

    Attributes:
        name: of the kind.
        shift: [C] fp32, what that stream still lacks in every row.
    """

    name: str
    shift: Tensor

    def __call__(self, patches: Tensor, batch: int, taps: Taps) -> Tensor:
        """``patch_embed`` to ``blocks``: [B * H * W, 3 * P * P] → [B * H * W, C], compute type.

        The first call of a batch size may do what no graph can record.
        """


class FusedImageEncoder(NotCopied):
    """SAM's image encoder on a CUDA GPU, fp16 or bf16; an ``ImageEncoder``.

    Calls share buffers, which events hand on from stream to stream: calls from several threads
    and streams run one after another on the GPU.

    Attributes:
        img_size: side S of the square input, in pixels.
        device: where the parameters are and the input must be; a GPU with its index.
        max_batch_size: pictures that run at once.
        computed_by: see ``ImageEncoder``.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tensors: Mapping[str, np.ndarray | Tensor],
        precision: str = "fp16",
        device: str | torch.device = "cuda",
        max_batch_size: int = 1,
        any_batch_size: bool = False,
        fp8: Fp8Plan | None = None,
    ) -> None:
        """
        Args:
            config: sizes of the encoder.
            tensors: its parameters under Meta's names without ``image_encoder.``, any float type.
            precision: ``fp16`` or ``bf16``: weights and activations; sums are fp32 always. Or
                ``fp8``: e4m3 where ``fp8`` says so, and fp16 elsewhere; on compute capability 9.0.
            device: a CUDA device of compute capability 8.0 or newer. ``cpu`` works in Triton's
                interpreter (``TRITON_INTERPRET=1``), for tests.
            max_batch_size: pictures that run at once; buffers are made for as many.
            any_batch_size: whether a call may have more pictures than that, which then run so many
                at a time.
            fp8: which linears are in e4m3 and their scales (``calibration.calibrated_plan``); with
                that precision, and only then. Of those that it has packed, no weight is needed in
                ``tensors``.

        Raises:
            EngineError: the configuration, precision or device is not supported.
        """
        if precision not in CUDA_PRECISIONS:
            raise EngineError(
                f"the cuda backend computes in {' or '.join(CUDA_PRECISIONS)}, not in {precision}; "
                "use one of them, or the cpu backend for fp32"
            )
        if (precision == "fp8") != (fp8 is not None):
            raise EngineError(
                f"precision {precision} {'without' if fp8 is None else 'with'} a plan of its "
                "scales; give `fp8` with precision fp8, and only then"
            )
        if max_batch_size < 1:
            raise EngineError(f"max_batch_size must be at least 1, not {max_batch_size}")
        check_sizes(config)
        self.config = config
        self.img_size = config.img_size
        self.device = resolved(device)
        self.dtype = DTYPES[precision]
        self.max_batch_size = max_batch_size
        self._largest_batch = None if any_batch_size else max_batch_size
        # -1 leaves the current GPU as it is: the interpreter runs on the CPU.
        self._index = -1 if self.device.type == "cpu" else self.device.index
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._graphed: dict[int, GraphedWork[Tensor]] = {}
        with as_written(), torch.cuda.device(self._index):
            self._prepare(EncoderParameters(config, tensors, self.dtype, self.device, fp8))
        made = ["cuda", precision, self._trunk.name, architecture(self.device), kernels_digest()]
        self.computed_by = " ".join([*made, *([fp8.digest()] if fp8 is not None else [])])

    def _prepare(self, parameters: EncoderParameters) -> None:
        self._product = Products(self.dtype, self.device)
        self._trunk = _trunk_for(parameters, self._product, self.max_batch_size)
        self._pack_neck(parameters)
        self._allocate(parameters.empty)
        self._end = None if self.config.is_plain else End(parameters, self.max_batch_size)
        if self.device.type == "cuda":
            self._last_use = torch.cuda.Event()
            self._last_use.record()
            wait_when_deleted(self, self._last_use)

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] fp32, normalised and padded → [B, *config.output_shape] fp32.

        The first call of a batch size compiles what is not in the kernels' cache and records a
        graph.

        Raises:
            InputError: another shape, type or device, or more pictures than it takes.
            EngineError: in a process that was forked from the one that made the encoder, or while
                the caller records a graph of its own.
        """
        check_pictures(x, self.img_size, self.device, self._largest_batch)
        check_process(self._process)
        with as_written(), torch.cuda.device(self._index), self._lock:
            outputs = [self._encode(pictures) for pictures in x.split(self.max_batch_size)]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _encode(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if self.device.type == "cpu":
            self._image[:batch].copy_(x)
            return self._forward(batch).clone()
        if torch.cuda.is_current_stream_capturing():
            raise EngineError(
                "the image encoder replays a graph of its own and cannot be recorded in another; "
                "call it outside of torch.cuda.graph"
            )
        stream = torch.cuda.current_stream()
        stream.wait_event(self._last_use)  # of the buffers, on whichever stream that was
        try:
            self._image[:batch].copy_(x)
            if batch not in self._graphed:
                self._graphed[batch] = GraphedWork(self.device)
            return self._graphed[batch](partial(self._forward, batch)).clone()
        finally:
            self._last_use.record(stream)

    def _forward(self, batch: int) -> Tensor:
        """``ImageEncoderViT.forward`` from ``_image`` to a buffer of ours."""
        side, out_chans = self.config.grid_size, self.config.out_chans
        rows = batch * side * side

        patches = self._patches[:rows]
        patchify(self._image[:batch], patches, self.config.patch_size)
        x = self._trunk(patches, batch, self._end.taps(batch) if self._end else {})

        # neck: Conv2d 1×1, LayerNorm2d, Conv2d 3×3, LayerNorm2d
        narrow, normed = self._narrow[0, :rows], self._narrow[1, :rows]
        self._product(x, self._neck0_weight, narrow)
        layer_norm(
            narrow, self._neck1_shift, self._neck1_weight, self._neck1_bias, normed, NECK_EPS
        )
        nchw = normed.view(batch, side, side, out_chans).permute(0, 3, 1, 2)
        nchw = convolve(nchw, self._neck2_weight)
        layer_norm_to_nchw(
            nchw.permute(0, 2, 3, 1).contiguous(),  # cuDNN keeps channels last: no copy
            self._neck3_weight,
            self._neck3_bias,
            self._embedding[:batch],
            NECK_EPS,
        )
        embedding = self._embedding[:batch]
        return self._end(embedding) if self._end else embedding

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
        # (Not as a product of torch's, which may round its operands to TF32.)
        self._neck1_shift = (neck0 * self._trunk.shift).sum(1)
        self._neck1_weight, self._neck1_bias = fp32("neck.1.weight"), fp32("neck.1.bias")
        self._neck2_weight = parameters.matrix("neck.2.weight").to(
            memory_format=torch.channels_last
        )
        self._neck3_weight, self._neck3_bias = fp32("neck.3.weight"), fp32("neck.3.bias")


def check_sizes(config: EncoderConfig) -> None:
    """Refuses an encoder that no kernel knows.

    Raises:
        EngineError: its blocks differ in size, or its heads have another size than the kernels'.
    """
    if not config.is_uniform:
        raise EngineError(
            "the cuda backend takes encoders whose blocks are all alike, and this one's heads or "
            f"MLPs differ (heads of {_range(config.block_head_dim, config)} channels, MLPs of "
            f"{_range(config.block_mlp_dim, config)}); use the tensorrt or the cpu backend"
        )
    split_head_dim(config.head_dim)


def check_fp8(config: EncoderConfig, device: torch.device) -> None:
    """Refuses what has no kernels in FP8.

    Raises:
        EngineError: the device is not of compute capability 9.0, or the encoder has sizes that the
            kernels for it do not know.
    """
    found = "a CPU"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found = f"compute capability {major}.{minor}"
    if found != "compute capability 9.0":
        raise EngineError(
            f"fp8 needs a GPU of compute capability 9.0 (H100, H200), and this is {found}; take "
            "--precision fp16, or bf16 on a CPU"
        )
    check_sizes(config)
    if not HopperTrunk.supports(config) or config.mlp_dim % QUANTISED_GROUP:
        raise EngineError(
            f"the cuda backend has no FP8 kernels for an encoder of {config.embed_dim} channels, "
            f"MLPs of {config.mlp_dim}, heads of {config.head_dim} and windows of "
            f"{config.window_size}; take --precision fp16"
        )


def _range(size: Callable[[int], int], config: EncoderConfig) -> str:
    sizes = {size(block) for block in range(config.depth)}
    return str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"


def _trunk_for(parameters: EncoderParameters, products: Products, max_batch_size: int) -> Trunk:
    device = parameters.device
    if parameters.fp8 is not None:
        check_fp8(parameters.config, device)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return PortableTrunk(parameters, products, max_batch_size)
    if device.type != "cuda":
        raise EngineError(
            f"the cuda backend needs an NVIDIA GPU and was given {device}; "
            "use --backend cpu on this machine"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < MIN_CUDA_CAPABILITY:
        raise EngineError(
            f"the cuda backend needs compute capability {MIN_CUDA_CAPABILITY} or newer, this GPU "
            f"has {major}.{minor}; use the tensorrt backend"
        )
    if major == 9 and HopperTrunk.supports(parameters.config):
        return HopperTrunk(parameters, max_batch_size)
    return PortableTrunk(parameters, products, max_batch_size)

"""The cuda runtime: the image encoder as a straight schedule of kernels in one CUDA graph.

The schedule crosses operator boundaries, so it stands beside ``ImageEncoderViT.forward`` of
segment_anything/modeling/image_encoder.py rather than below it; each launch names the lines it
replaces. What is folded into the parameters when they are packed:

- The biases of ``attn.proj`` and ``mlp.lin2`` are never added to the residual stream. Their running
  sum is a vector known in advance, and each LayerNorm adds it as it reads (``shift``). So both
  linears are bare products that accumulate into the residual.
- The patch embedding's bias is part of ``pos_embed``.
- The relative position tables carry √head_dim, because the attention kernels scale the sum of q·kᵀ
  and the bias (Meta scales q·kᵀ alone).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.config import EncoderConfig
from samtrt.errors import EngineError
from samtrt.image_encoder import check_pictures
from samtrt.kernels.assembler import require_sound_ptxas
from samtrt.kernels.cublaslt import Product, make_workspace
from samtrt.kernels.gemm import GemmTiles, gelu, linear_gelu, patchify
from samtrt.kernels.global_attention import (
    GlobalTiles,
    global_attention,
    relative_positions,
    row_block,
)
from samtrt.kernels.norm import layer_norm, layer_norm_to_nchw
from samtrt.kernels.window_attention import (
    WindowTiles,
    split_head_dim,
    window_attention,
    window_places,
    window_table,
)
from samtrt.packing import DTYPES

NECK_EPS = 1e-6  # LayerNorm2d of segment_anything/modeling/common.py


@dataclass(frozen=True)
class Tiles:
    """Launch configurations of one GPU architecture; fixed, so that nothing is tuned at start."""

    gemm: GemmTiles | None  # None: cuBLAS and a GELU of its own
    window: WindowTiles
    globals: GlobalTiles


# By compute capability's major number. Hopper's were measured (docs/performance.md); the others
# are chosen to fit 99 KiB of shared memory, the least that sm_80 and newer have.
HOPPER = Tiles(
    GemmTiles(), WindowTiles(block_n=32, num_stages=3), GlobalTiles(block_m=64, num_warps=4)
)
PORTABLE = Tiles(None, WindowTiles(), GlobalTiles(block_m=64, num_warps=4, num_stages=2, tma=False))


@dataclass(frozen=True)
class _Block:
    """One packed transformer block; matrices in the compute type, vectors that norms read fp32."""

    norm1_shift: Tensor
    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    rel_pos: Tensor  # window: window_table's; global: [2, 2 * side - 1, D], h and w
    proj_weight: Tensor
    norm2_shift: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    lin1_weight: Tensor
    lin1_bias: Tensor
    lin2_weight: Tensor


class FusedImageEncoder:
    """SAM's image encoder on a CUDA GPU, fp16 or bf16; implements ``samtrt.encoder.ImageEncoder``.

    Calls share buffers, so one instance serves one stream at a time.

    Attributes:
        img_size: side S of the square input, in pixels.
        device: where the parameters are and the input must be.
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
        self.tiles = _tiles_for(self.device)
        split_head_dim(config.head_dim)
        if config.global_attn_indexes:
            row_block(config.grid_size)

        self._pack(tensors)
        self._allocate()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._products: dict[tuple[int, ...], Product] = {}
        if self.device.type == "cuda":
            self._scratch = make_workspace(self.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] fp32, normalised and padded → [B, out_chans, S/16, S/16] fp32.

        The first call of a batch size compiles what is not in Triton's cache and records a graph.

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
            self._choose_products(batch)
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
        config = self.config
        side, channels = config.grid_size, config.embed_dim
        rows = batch * side * side
        x = self._x[:rows]

        # patch_embed, x + pos_embed
        patches = self._view(0, rows, self._patch_weight.shape[1])
        patchify(self._image[:batch], patches, config.patch_size)
        x.view(batch, -1, channels).copy_(self._pos_embed)
        x.addmm_(patches, self._patch_weight.t())

        for index, block in enumerate(self._blocks):
            self._block(batch, block, config.is_global(index))

        # neck: Conv2d 1×1, LayerNorm2d, Conv2d 3×3, LayerNorm2d
        out_chans = config.out_chans
        narrow = self._view(0, rows, out_chans)
        torch.mm(x, self._neck0_weight.t(), out=narrow)
        neck = self._view(rows * out_chans, rows, out_chans)
        layer_norm(narrow, self._neck1_shift, self._neck1_weight, self._neck1_bias, neck, NECK_EPS)
        nchw = neck.view(batch, side, side, out_chans).permute(0, 3, 1, 2)
        nchw = F.conv2d(nchw, self._neck2_weight, padding=1)
        layer_norm_to_nchw(
            nchw.permute(0, 2, 3, 1).contiguous(),  # cuDNN keeps channels last: no copy
            self._neck3_weight,
            self._neck3_bias,
            self._embedding[:batch],
            NECK_EPS,
        )

    def _block(self, batch: int, block: _Block, is_global: bool) -> None:
        """``Block.forward``: eight launches, nine where attention is global."""
        config, tiles = self.config, self.tiles
        side, channels, heads = config.grid_size, config.embed_dim, config.num_heads
        rows = batch * side * side
        x, normed = self._x[:rows], self._normed[:rows]
        eps = config.layer_norm_eps

        # x = self.norm1(x)
        layer_norm(x, block.norm1_shift, block.norm1_weight, block.norm1_bias, normed, eps)
        # qkv = self.qkv(x): of real tokens only
        qkv = self._view(0, rows, 3 * channels)
        self._linear(normed, block.qkv_weight, block.qkv_bias, qkv)
        # window_partition, attn without its linears, window_unpartition
        qkv = qkv.view(batch, side, side, 3 * channels)
        attended = normed.view(batch, side, side, channels)  # norm1's output is done with
        if is_global:
            rel_h, rel_w = self._relative_positions(batch)
            table_h, table_w = block.rel_pos
            relative_positions(qkv, table_h, table_w, rel_h, rel_w, heads)
            global_attention(qkv, rel_h, rel_w, attended, heads, tiles.globals)
        else:
            window_attention(
                qkv,
                block.qkv_bias,
                block.rel_pos,
                self._places,
                attended,
                config.window_size,
                heads,
                tiles.window,
            )
        # x = shortcut + self.proj(x)
        self._linear(normed, block.proj_weight, None, x)
        # x = x + self.mlp(self.norm2(x))
        layer_norm(x, block.norm2_shift, block.norm2_weight, block.norm2_bias, normed, eps)
        hidden = self._view(0, rows, config.mlp_dim)
        if tiles.gemm is not None:
            linear_gelu(normed, block.lin1_weight, block.lin1_bias, hidden, tiles.gemm)
        else:
            torch.addmm(block.lin1_bias, normed, block.lin1_weight.t(), out=hidden)
            gelu(hidden, hidden)
        self._linear(hidden, block.lin2_weight, None, x)

    def _linear(self, a: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """``out = a @ weight.T + bias``; without a bias ``out += a @ weight.T``."""
        product = self._products.get((a.shape[0], *weight.shape))
        if product is not None:
            product(a, weight, bias, out)
        elif bias is not None:
            torch.addmm(bias, a, weight.t(), out=out)
        else:
            out.addmm_(a, weight.t())

    def _choose_products(self, batch: int) -> None:
        """Picks cuBLASLt's algorithms for this batch size, on random data and every weight."""
        rows = batch * self.config.grid_size**2
        x, normed = self._x[:rows].normal_(), self._normed[:rows].normal_()
        hidden = self._view(0, rows, self.config.mlp_dim).normal_()
        qkv = self._view(0, rows, 3 * self.config.embed_dim)
        for a, weights, bias, out in (
            (normed, [b.qkv_weight for b in self._blocks], self._blocks[0].qkv_bias, qkv),
            (normed, [b.proj_weight for b in self._blocks], None, x),
            (hidden, [b.lin2_weight for b in self._blocks], None, x),
        ):
            product = Product(
                rows, out.shape[1], a.shape[1], self.dtype, bias is not None, self._scratch
            )
            product.choose(a, weights, bias, out)
            self._products[(rows, *weights[0].shape)] = product

    def _allocate(self) -> None:
        config, batch = self.config, self.max_batch_size
        side, channels = config.grid_size, config.embed_dim
        rows = batch * side * side

        def empty(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=self.device)

        self._image = empty(batch, 3, self.img_size, self.img_size, dtype=torch.float32)
        self._embedding = empty(batch, config.out_chans, side, side, dtype=torch.float32)
        self._x = empty(rows, channels)
        self._normed = empty(rows, channels)
        # Never alive together: the patches, qkv with rel_h and rel_w, the MLP's hidden layer.
        qkv = rows * 3 * channels
        self._rel_offset = qkv
        pairs = rows * config.num_heads
        relative = pairs * (2 * side + row_block(side)) if config.global_attn_indexes else 0
        patches = rows * self._patch_weight.shape[1]
        workspace = max(qkv + relative, rows * config.mlp_dim, patches, 2 * rows * config.out_chans)
        self._workspace = empty(workspace)

    def _view(self, offset: int, rows: int, columns: int) -> Tensor:
        return self._workspace[offset : offset + rows * columns].view(rows, columns)

    def _relative_positions(self, batch: int) -> tuple[Tensor, Tensor]:
        """``rel_h`` [B, heads, H, H * W] fp32 and ``rel_w`` [B, heads, H * W, row block]."""
        side, heads = self.config.grid_size, self.config.num_heads
        tokens = side * side
        count_h = 2 * batch * heads * side * tokens  # two elements hold one fp32
        block = row_block(side)
        offset = self._rel_offset
        rel_h = self._workspace[offset : offset + count_h].view(torch.float32)
        offset += count_h
        rel_w = self._workspace[offset : offset + batch * heads * tokens * block]
        return (
            rel_h.view(batch, heads, side, tokens),
            rel_w.view(batch, heads, tokens, block),
        )

    def _pack(self, tensors: Mapping[str, np.ndarray | Tensor]) -> None:
        config = self.config
        channels = config.embed_dim

        def fp32(name: str) -> Tensor:
            return torch.as_tensor(tensors[name]).to(self.device).float()

        def matrix(name: str) -> Tensor:
            return torch.as_tensor(tensors[name]).to(self.device).to(self.dtype).contiguous()

        self._patch_weight = matrix("patch_embed.proj.weight").view(channels, -1)
        pos_embed = fp32("pos_embed") + fp32("patch_embed.proj.bias")
        self._pos_embed = pos_embed.view(1, -1, channels).to(self.dtype)

        shift = torch.zeros(channels, dtype=torch.float32, device=self.device)
        if not all(map(config.is_global, range(config.depth))):
            self._places = window_places(config.window_size).to(self.device, self.dtype)
        self._blocks = []
        for index in range(config.depth):
            name = f"blocks.{index}."
            size = config.attention_size(index)
            rel_pos_h, rel_pos_w = (
                resize_rel_pos(fp32(f"{name}attn.rel_pos_{axis}"), size) for axis in "hw"
            )
            if config.is_global(index):
                table = torch.stack((rel_pos_h, rel_pos_w)) * config.head_dim**0.5
            else:
                table = window_table(rel_pos_h, rel_pos_w, size)
            norm1_shift = shift
            norm2_shift = norm1_shift + fp32(name + "attn.proj.bias")
            shift = norm2_shift + fp32(name + "mlp.lin2.bias")
            self._blocks.append(
                _Block(
                    norm1_shift=norm1_shift,
                    norm1_weight=fp32(name + "norm1.weight"),
                    norm1_bias=fp32(name + "norm1.bias"),
                    qkv_weight=matrix(name + "attn.qkv.weight"),
                    qkv_bias=matrix(name + "attn.qkv.bias"),
                    rel_pos=table.to(self.dtype),
                    proj_weight=matrix(name + "attn.proj.weight"),
                    norm2_shift=norm2_shift,
                    norm2_weight=fp32(name + "norm2.weight"),
                    norm2_bias=fp32(name + "norm2.bias"),
                    lin1_weight=matrix(name + "mlp.lin1.weight"),
                    lin1_bias=matrix(name + "mlp.lin1.bias"),
                    lin2_weight=matrix(name + "mlp.lin2.weight"),
                )
            )

        neck0 = fp32("neck.0.weight").view(config.out_chans, channels)
        self._neck0_weight = neck0.to(self.dtype)
        # neck.0 is linear, so the biases still owed to the residual pass through it.
        self._neck1_shift = neck0 @ shift
        self._neck1_weight, self._neck1_bias = fp32("neck.1.weight"), fp32("neck.1.bias")
        self._neck2_weight = matrix("neck.2.weight").to(memory_format=torch.channels_last)
        self._neck3_weight, self._neck3_bias = fp32("neck.3.weight"), fp32("neck.3.bias")


def resize_rel_pos(rel_pos: Tensor, size: int) -> Tensor:
    """A relative position table [L, D] fp32 for attention over ``size`` tokens: [2 * size - 1, D].

    Linear interpolation where the lengths differ, as Meta's ``get_rel_pos``.
    """
    length = 2 * size - 1
    if rel_pos.shape[0] == length:
        return rel_pos
    return F.interpolate(rel_pos.t()[None], size=length, mode="linear")[0].t().contiguous()


def _tiles_for(device: torch.device) -> Tiles:
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return PORTABLE
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
    if major != 9:
        return PORTABLE
    require_sound_ptxas()
    return HOPPER

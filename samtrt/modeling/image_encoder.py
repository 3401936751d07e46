"""SAM's image encoder (Segment Anything, arXiv:2304.02643, appendix A): a ViT with windowed and
global attention, relative positions, and a convolutional neck.

The definition is used twice: called on torch tensors it computes, called inside
``samtrt.modeling.network.net_guard`` it defines the TensorRT network. Names of modules and
parameters are those of Meta's ``segment_anything/modeling/image_encoder.py``.
"""

from functools import partial
from typing import Literal

import torch

from samtrt.checkpoints.config import EncoderConfig
from samtrt.modeling import functional as F
from samtrt.modeling.functional import Tensor
from samtrt.modeling.layers import MLP, Conv2d, LayerNorm, LayerNorm2d, Linear
from samtrt.modeling.module import Module, ModuleList, Parameter

AttentionKind = Literal["fused", "plain"]


class PatchEmbed(Module):
    """Image [B, 3, S, S] → tokens [B, S/patch, S/patch, C]."""

    def __init__(self, cfg: EncoderConfig) -> None:
        self.proj = Conv2d(3, cfg.embed_dim, cfg.patch_size, stride=cfg.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.permute(self.proj(x), (0, 2, 3, 1))


def relative_positions(size: int, table: torch.Tensor) -> torch.Tensor:
    """Embedding of each query–key offset along one axis: [size, size, D] (Meta's ``get_rel_pos``).

    Args:
        size: number of positions along the axis.
        table: [2·n − 1, D], one row an offset from −(n − 1) to n − 1; resized linearly to
            2·size − 1 rows where n is not ``size``.
    """
    rows = 2 * size - 1
    if len(table) != rows:
        table = torch.nn.functional.interpolate(table.T[None], size=rows, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


class Attention(Module):
    """Multi-head self-attention over a square of tokens [B, size, size, C]."""

    def __init__(self, cfg: EncoderConfig, index: int, kind: AttentionKind) -> None:
        self.num_heads, self.head_dim = cfg.num_heads, cfg.block_head_dim(index)
        self.fused = kind == "fused"
        inner = self.num_heads * self.head_dim
        self.qkv = Linear(cfg.embed_dim, 3 * inner)
        self.proj = Linear(inner, cfg.embed_dim)
        gather = partial(relative_positions, cfg.attention_size(index))
        self.rel_pos_h = Parameter(None, self.head_dim, prepare=gather)
        self.rel_pos_w = Parameter(None, self.head_dim, prepare=gather)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        qkv = self.qkv(x)
        q, k, v = (self._split_heads(qkv, index) for index in range(3))
        x = F.rel_pos_attention(q, k, v, self.rel_pos_h, self.rel_pos_w, self.fused)
        x = F.permute(x, (0, 2, 1, 3))
        return self.proj(F.view(x, (-1, height, width, self.num_heads * self.head_dim)))

    def _split_heads(self, qkv: Tensor, index: int) -> Tensor:
        """q, k or v of [B, H, W, 3·C] as [B, heads, H·W, head_dim]."""
        _, height, width, channels = qkv.shape
        channels //= 3
        x = F.slice(qkv, (0, 0, 0, index * channels), (-1, -1, -1, channels))
        x = F.view(x, (-1, height * width, self.num_heads, self.head_dim))
        return F.permute(x, (0, 2, 1, 3))


class Block(Module):
    """Transformer block over tokens [B, H, W, C]; attention in windows, or global."""

    def __init__(self, cfg: EncoderConfig, index: int, kind: AttentionKind) -> None:
        self.window_size = 0 if cfg.is_global(index) else cfg.window_size
        self.norm1 = LayerNorm(cfg.embed_dim, cfg.layer_norm_eps)
        self.attn = Attention(cfg, index, kind)
        self.norm2 = LayerNorm(cfg.embed_dim, cfg.layer_norm_eps)
        self.mlp = MLP(cfg.embed_dim, cfg.block_mlp_dim(index))

    def forward(self, x: Tensor) -> Tensor:
        x = F.add(x, self._attend(self.norm1(x)))
        return F.add(x, self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window_size:
            return self.attn(x)
        _, height, width, _ = x.shape
        # The padding tokens are zero before qkv, so their keys and values are qkv's bias, and
        # they take part in the softmax: the checkpoints were trained like this.
        x = F.window_partition(x, self.window_size)
        return F.window_unpartition(self.attn(x), self.window_size, (height, width))


class Neck(ModuleList):
    """Features [B, C, H, W] → embedding [B, out_chans, H, W]."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__(
            [
                Conv2d(cfg.embed_dim, cfg.out_chans, 1, bias=False),
                LayerNorm2d(cfg.out_chans),
                Conv2d(cfg.out_chans, cfg.out_chans, 3, padding=1, bias=False),
                LayerNorm2d(cfg.out_chans),
            ]
        )


class ImageEncoderViT(Module):
    """Normalised, padded image [B, 3, S, S] → embedding [B, out_chans, S/patch, S/patch].

    Input and output are float32; in between everything has the dtype that ``load`` was given.

    Args:
        cfg: the sizes.
        attention: "fused" uses the back end's attention operator, "plain" spells attention out.
    """

    def __init__(self, cfg: EncoderConfig, attention: AttentionKind = "fused") -> None:
        self.cfg = cfg
        self.patch_embed = PatchEmbed(cfg)
        self.pos_embed = Parameter(1, cfg.grid_size, cfg.grid_size, cfg.embed_dim)
        self.blocks = ModuleList([Block(cfg, i, attention) for i in range(cfg.depth)])
        self.neck = Neck(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = F.cast(x, self.pos_embed.value.dtype)
        x = F.add(self.patch_embed(x), F.constant(self.pos_embed))
        x = self.blocks(x)
        x = self.neck(F.permute(x, (0, 3, 1, 2)))
        return F.cast(x, torch.float32)

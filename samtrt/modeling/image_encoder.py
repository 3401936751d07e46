"""SAM's image encoder (Segment Anything, arXiv:2304.02643, appendix A): a ViT with windowed and
global attention, relative positions, and a convolutional neck.

The definition is used twice. As it is, it is a tree of torch's own layers with the names, the
attributes and the arguments of Meta's ``segment_anything/modeling/image_encoder.py``, to train, to
trace and to take apart. Bound to the op vocabulary (``samtrt.modeling.bound``) the same ``forward``
computes for inference or, inside ``samtrt.modeling.network.net_guard``, defines the TensorRT
network.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional
from torch import nn

from samtrt.checkpoints.config import READOUT_LAYER, EncoderConfig
from samtrt.modeling import functional as F
from samtrt.modeling.functional import Tensor
from samtrt.modeling.heads import heads, read_out
from samtrt.modeling.layers import LayerNorm2d, MLPBlock

AttentionKind = Literal["fused", "plain"]


class PatchEmbed(nn.Module):
    """Image [B, 3, S, S] → tokens [B, S/patch, S/patch, C]."""

    def __init__(
        self,
        kernel_size: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (16, 16),
        padding: tuple[int, int] = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.permute(self.proj(x), (0, 2, 3, 1))


def resize_rel_pos(table: torch.Tensor, size: int) -> torch.Tensor:
    """A table [L, D] of relative positions for ``size`` positions: [2·size − 1, D].

    Linear interpolation where the lengths differ, as Meta's ``get_rel_pos``; in float32 at least.
    """
    rows = 2 * size - 1
    if len(table) == rows:
        return table
    precise = table.to(torch.promote_types(table.dtype, torch.float32))
    resized = torch.nn.functional.interpolate(precise.T[None], size=rows, mode="linear")
    return resized[0].T.contiguous().to(table.dtype)


def relative_positions(size: int, table: torch.Tensor) -> torch.Tensor:
    """Embedding of each query–key offset along one axis: [size, size, D] (Meta's ``get_rel_pos``).

    Args:
        size: number of positions along the axis.
        table: [2·n − 1, D], one row an offset from −(n − 1) to n − 1; see ``resize_rel_pos``.
    """
    position = torch.arange(size, device=table.device)
    return resize_rel_pos(table, size)[position[:, None] - position[None, :] + size - 1]


class Attention(nn.Module):
    """Multi-head self-attention over a rectangle of tokens [B, H, W, C].

    Args:
        dim: channels C.
        num_heads: attention heads.
        qkv_bias: whether ``qkv`` has a bias.
        use_rel_pos: whether scores have decomposed relative positions.
        rel_pos_zero_init: they start at zero either way, as in Meta's code.
        input_size: (H, W) that the tables of relative positions are made for; on another size they
            are interpolated.
        head_dim: channels of a head; C / ``num_heads`` unless the model was pruned.
    """

    fused: bool = True  # by the back end's own attention operator, or step by step

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: tuple[int, int] | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        self.scale = self.head_dim**-0.5
        inner = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, inner * 3, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            if input_size is None:
                raise ValueError("relative positions need input_size, the (H, W) of the tokens")
            height, width = input_size
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, self.head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, self.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(self.qkv(x)))

    def attend(self, qkv: Tensor) -> Tensor:
        """What lies between the two linears: [B, H, W, 3·C] → [B, H, W, C]."""
        height, width = F.sides(qkv)
        q, k, v = (self._split_heads(qkv, index) for index in range(3))
        if self.use_rel_pos:
            rel_h = relative_positions(height, self.rel_pos_h)
            rel_w = relative_positions(width, self.rel_pos_w)
            x = F.rel_pos_attention(q, k, v, rel_h, rel_w, self.fused)
        else:
            x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = F.permute(x, (0, 2, 1, 3))
        return F.view(x, (-1, height, width, self.num_heads * self.head_dim))

    def _split_heads(self, qkv: Tensor, index: int) -> Tensor:
        """q, k or v of [B, H, W, 3·C] as [B, heads, H·W, head_dim]."""
        height, width = F.sides(qkv)
        channels = self.num_heads * self.head_dim
        x = F.slice(qkv, (0, 0, 0, index * channels), (-1, -1, -1, channels))
        x = F.view(x, (-1, height * width, self.num_heads, self.head_dim))
        return F.permute(x, (0, 2, 1, 3))


class Block(nn.Module):
    """Transformer block over tokens [B, H, W, C]; attention in windows, or global.

    Args:
        dim: channels C.
        num_heads, qkv_bias, use_rel_pos, rel_pos_zero_init, head_dim: of its ``Attention``.
        mlp_ratio: hidden channels of the MLP over C.
        norm_layer, act_layer: make a norm of a number of channels, and an activation.
        window_size: side of the attention's windows in tokens; 0 for global attention.
        input_size: (H, W) of the tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        input_size: tuple[int, int] | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias,
            use_rel_pos,
            rel_pos_zero_init,
            (window_size, window_size) if window_size else input_size,
            head_dim,
        )
        self.norm2 = norm_layer(dim)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio), act_layer)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        x = F.add(x, self._attend(self.norm1(x)))
        return F.add(x, self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window_size:
            return self.attn(x)
        # The padding tokens are zero before qkv, so their keys and values are qkv's bias, and
        # they take part in the softmax: the checkpoints were trained like this.
        windows = F.window_partition(x, self.window_size)
        return F.window_unpartition(self.attn(windows), self.window_size, F.sides(x))


class ImageEncoderViT(nn.Module):
    """Normalised, padded image [B, 3, S, S] → embedding [B, out_chans, S/patch, S/patch].

    Some of SAM's family have more (``build_image_encoder``): with ``taps``, the output of those
    blocks follows the embedding as further channels; ``heads`` are layers after the neck
    (``samtrt.modeling.heads``).

    Args:
        img_size: side S of the square input, in pixels.
        patch_size: side of a patch, in pixels.
        in_chans: channels of the image.
        embed_dim: channels C of the tokens.
        depth: number of blocks.
        num_heads, mlp_ratio, qkv_bias, norm_layer, act_layer, use_rel_pos, rel_pos_zero_init: see
            ``Block``.
        out_chans: channels of the embedding.
        use_abs_pos: whether there is a position embedding, ``pos_embed`` [1, h, w, C].
        window_size: side of the windows, in tokens; 0 for global attention in all blocks.
        global_attn_indexes: blocks whose attention is global.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        global_attn_indexes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.taps: tuple[int, ...] = ()
        self.heads: tuple[str, ...] = ()  # layers after the neck
        side = img_size // patch_size
        self.patch_embed = PatchEmbed(
            (patch_size, patch_size), (patch_size, patch_size), (0, 0), in_chans, embed_dim
        )
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, side, side, embed_dim)) if use_abs_pos else None
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                norm_layer,
                act_layer,
                use_rel_pos,
                rel_pos_zero_init,
                0 if index in global_attn_indexes else window_size,
                (side, side),
            )
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, tapped = self.trunk(x)
        x = self.neck(F.permute(x, (0, 3, 1, 2)))
        for name in self.heads:
            x = self.get_submodule(name)(x)
        if READOUT_LAYER in self.heads:
            x = read_out(x, self.patch_embed.proj.kernel_size[0])
        return F.concat([x, *tapped], 1) if tapped else x

    def trunk(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Image → tokens [B, h, w, C] after the last block, and the taps, each [B, C, h, w]."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = F.add(x, F.constant(self.pos_embed, name="pos_embed"))
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                tapped.append(F.permute(x, (0, 3, 1, 2)))
        return x, tapped


def build_image_encoder(
    config: EncoderConfig, kind: type[ImageEncoderViT] = ImageEncoderViT
) -> ImageEncoderViT:
    """An encoder of these sizes with fresh parameters, as Meta initialises them."""
    encoder = kind(**encoder_arguments(config))
    if not config.is_uniform:
        for index in range(config.depth):
            encoder.blocks[index] = Block(
                config.embed_dim,
                config.num_heads,
                _mlp_ratio(config.block_mlp_dim(index), config.embed_dim),
                norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
                use_rel_pos=True,
                window_size=0 if config.is_global(index) else config.window_size,
                input_size=(config.grid_size, config.grid_size),
                head_dim=config.block_head_dim(index),
            )
    encoder.taps = config.taps
    for name, layer in heads(config):
        encoder.add_module(name, layer)
        encoder.heads += (name,)
    return encoder


def encoder_arguments(config: EncoderConfig) -> dict[str, Any]:
    """What the constructor of ``ImageEncoderViT`` takes, here, in Meta's package and in its forks,
    for an encoder of these sizes."""
    return {
        "img_size": config.img_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": _mlp_ratio(config.mlp_dim, config.embed_dim),
        "out_chans": config.out_chans,
        "norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps),
        "qkv_bias": True,
        "use_rel_pos": True,
        "window_size": config.window_size,
        "global_attn_indexes": config.global_attn_indexes,
    }


def _mlp_ratio(mlp_dim: int, embed_dim: int) -> float:
    """Of which ``Block`` makes that ``mlp_dim``, however the division rounds."""
    return (mlp_dim + 0.5) / embed_dim

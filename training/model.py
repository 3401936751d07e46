"""Meta's ``Sam`` modules under forward passes made for training.

The parameters, their names and the values computed are Meta's (``tests/training/test_training.py``
compares both passes). Three things are arranged for speed: the decomposed relative position goes
through the fused attention of PyTorch, prompts of several pictures are decoded together, and
nothing depends on the values in a tensor, so that the GPU is never waited for.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.reports.peers import meta_sam


def demo_config(img_size: int = 1024) -> EncoderConfig:
    """Sizes of the shipped checkpoint: 3.9 M parameters in the encoder, 4.1 M in the decoder."""
    return EncoderConfig(
        embed_dim=192,
        depth=6,
        num_heads=3,
        global_attn_indexes=(2, 5),
        mlp_dim=576,
        img_size=img_size,
    )


def new_sam(config: EncoderConfig, seed: int) -> Any:
    """Meta's ``Sam`` with fresh parameters, ready to train."""
    torch.manual_seed(seed)
    sam = meta_sam(config)
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    return sam.train()


def _windows(x: Tensor, side: int) -> tuple[Tensor, int]:
    """[B, H, H, C] → [B·n², side, side, C], zero-padded, and n."""
    batch, height, _, channels = x.shape
    count = -(-height // side)
    padding = count * side - height
    x = F.pad(x, (0, 0, 0, padding, 0, padding))
    x = x.view(batch, count, side, count, side, channels).transpose(2, 3)
    return x.reshape(-1, side, side, channels), count


def _merge(windows: Tensor, count: int, height: int) -> Tensor:
    """The inverse of ``_windows``."""
    _, side, _, channels = windows.shape
    x = windows.view(-1, count, count, side, side, channels).transpose(2, 3)
    return x.reshape(-1, count * side, count * side, channels)[:, :height, :height]


def _attention(attention: Any, x: Tensor) -> Tensor:
    """Meta's ``Attention.forward`` on [B, S, S, C], the bias as extra channels of q and k.

    q·kᵀ + rel_h + rel_w = [q, rel_h, rel_w] · [k, one-hot row, one-hot column]ᵀ, so the fused
    kernels need no [S², S²] bias.
    """
    batch, side, _, channels = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).view(batch, side * side, 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    place = torch.arange(side, device=x.device)
    distance = place[:, None] - place[None, :] + side - 1
    grid = q.unflatten(2, (side, side))
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, attention.rel_pos_h[distance].to(q.dtype))
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, attention.rel_pos_w[distance].to(q.dtype))
    one_hot = torch.eye(side, dtype=q.dtype, device=x.device)
    rows = one_hot.repeat_interleave(side, 0).expand(batch, heads, -1, -1)
    columns = one_hot.repeat(side, 1).expand(batch, heads, -1, -1)
    width = q.shape[-1] + 2 * side
    spare = -width % 8  # fused kernels want multiples of 8 channels
    q = torch.cat([q * attention.scale, rel_h.flatten(2, 3), rel_w.flatten(2, 3)], dim=-1)
    k = torch.cat([k, rows, columns], dim=-1)
    out = F.scaled_dot_product_attention(
        F.pad(q, (0, spare)), F.pad(k, (0, spare)), F.pad(v, (0, 2 * side + spare)), scale=1.0
    )[..., : channels // heads]
    return attention.proj(out.transpose(1, 2).reshape(batch, side, side, channels))


def encode(encoder: Any, images: Tensor) -> Tensor:
    """``ImageEncoderViT.forward``: [B, 3, S, S] normalised → [B, 256, S/16, S/16]."""
    x = encoder.patch_embed(images) + encoder.pos_embed
    height = x.shape[1]
    for block in encoder.blocks:
        y = block.norm1(x)
        if block.window_size:
            y, count = _windows(y, block.window_size)
            y = _merge(_attention(block.attn, y), count, height)
        else:
            y = _attention(block.attn, y)
        x = x + y
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def embed_points(prompt_encoder: Any, coords: Tensor, labels: Tensor) -> Tensor:
    """[n, N, 2] pixels of the frame and [n, N] labels (−1 … 3) → [n, N, 256]."""
    table = torch.cat(
        [prompt_encoder.not_a_point_embed.weight]
        + [embedding.weight for embedding in prompt_encoder.point_embeddings]
    )
    position = prompt_encoder.pe_layer.forward_with_coords(
        coords + 0.5, prompt_encoder.input_image_size
    )
    return position * (labels >= 0)[..., None] + table[labels + 1]


def decode(
    sam: Any, embeddings: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All four masks for P prompts on each of B pictures.

    Args:
        embeddings: [B, 256, h, w].
        coords: [B·P, N, 2] pixels of the frame.
        labels: [B·P, N] int64.
        mask_input: [B·P, 1, 4h, 4w] logits or None.

    Returns:
        Logits [B·P, 4, 4h, 4w] and predicted IoUs [B·P, 4].
    """
    prompt, decoder = sam.prompt_encoder, sam.mask_decoder
    with torch.autocast(embeddings.device.type, enabled=False):
        sparse = embed_points(prompt, coords, labels)
        position = prompt.get_dense_pe()
    per_image = len(coords) // len(embeddings)
    if mask_input is None:
        dense = prompt.no_mask_embed.weight.view(1, -1, 1, 1).expand(
            len(coords), *position.shape[1:]
        )
    else:
        dense = prompt.mask_downscaling(mask_input)
    source = embeddings.repeat_interleave(per_image, 0) + dense
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([tokens.expand(len(coords), -1, -1), sparse], dim=1)
    return predict_masks(decoder, source, position, tokens)


def predict_masks(
    decoder: Any, source: Tensor, position: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The rest of Meta's ``MaskDecoder.predict_masks``, from the transformer on.

    Args:
        source: [n, 256, h, w] embeddings plus dense prompts.
        position: [1, 256, h, w].
        tokens: [n, 5 + N, 256].
    """
    count, channels, height, width = source.shape
    out, source = decoder.transformer(source, position.expand_as(source), tokens)
    source = source.transpose(1, 2).reshape(count, channels, height, width)
    upscaled = decoder.output_upscaling(source)
    weights = torch.stack(
        [mlp(out[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
    return masks, decoder.iou_prediction_head(out[:, 0])

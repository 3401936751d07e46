"""The mask decoder in two modules, so that a hover computes what the prompt changes.

``Preparation`` computes what depends on the picture, and on an earlier mask where there is one;
``PreparedDecoder`` the masks of one prompt. Together they are ``PromptedMaskDecoder``:

- The first block's image side is known before any prompt, so its keys, values and queries are
  projected once a picture; the decoder for many prompts moves these projections to the tokens.
- Positions are added to the image once a block, and not to each product.
- Only the image tokens that the picture covers need be upscaled, as the caller says.
- GELU is its tanh form, a third of the time of erf in WebAssembly, where it differs from the other
  by 5e-4 at most. What it moves in a mask is less than what fp16 weights do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.checkpoints.config import DECODER_NUM_HEADS
from samtrt.modeling.mask_decoder import MaskDecoder, split_pixels
from samtrt.modeling.prompt_encoder import PromptEncoder
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder
from samtrt.modeling.transformer import Attention, TwoWayAttentionBlock

_HEADS = DECODER_NUM_HEADS


class Preparation(nn.Module):
    """What a picture, and an earlier mask, give to all prompts.

    Shapes: S = h·w image tokens, C = 256 channels, eight heads of 16 channels.
    """

    def __init__(self, decoder: PromptedMaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, image_embeddings: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """fp16 [1, C, h, w], fp32 [1, 1, 4h, 4w] and [1] → ``PREPARED``.

        Returns:
            The image tokens [S, C]; of the first block the keys [8, 16, S] and values [8, S, 16]
            that tokens ask, and the queries [8, 16, S] that ask tokens.
        """
        encoder = self.decoder.prompt_encoder
        mask = encoder.embed_masks(mask_input)
        dense = has_mask_input * mask + (1 - has_mask_input) * encoder.embed_no_mask()
        image = (image_embeddings.float() + dense).flatten(2).transpose(1, 2)[0]
        block = _blocks(self.decoder)[0]
        asked, asking = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        placed = image + _positions(encoder)
        return (
            image,
            _heads(asked.k_proj(placed)).transpose(1, 2).contiguous(),
            _heads(asked.v_proj(image)).contiguous(),
            _heads(asking.q_proj(placed)).transpose(1, 2).contiguous(),
        )


class PreparedDecoder(nn.Module):
    """``PromptedMaskDecoder`` for one prompt, after ``Preparation``."""

    def __init__(self, decoder: PromptedMaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        image: Tensor,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All four masks where the picture is.

        Args:
            image, keys, values, queries: of ``Preparation``.
            point_coords: [1, N, 2] (x, y) in pixels of the model's frame.
            point_labels: [1, N], as ``PromptEncoder.embed_points`` takes them.
            rows, columns: int64 [R] and [Q], the image tokens to upscale; 0, 1, … as far as the
                picture and one more, or all of them.

        Returns:
            Logits [1, 4, 4R, 4Q] and predicted IoUs [1, 4].
        """
        encoder, decoder = self.decoder.prompt_encoder, self.decoder.mask_decoder
        positions = _positions(encoder)
        sparse = encoder.embed_points(point_coords, point_labels)
        outputs = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))
        token_pe = tokens = torch.cat((outputs[None], sparse), dim=1)

        first, second = _blocks(self.decoder)
        tokens = first.norm1(first.self_attn(tokens, tokens, tokens))
        to_image = first.cross_attn_token_to_image
        asked = _attended(to_image, _asking(to_image, tokens + token_pe) @ keys, values)
        tokens = _refined(first, tokens + asked)
        to_token = first.cross_attn_image_to_token
        scores = to_token._split_heads(to_token.k_proj(tokens + token_pe) * to_token.scale)[0]
        image = first.norm4(image + _spread(to_token, scores @ queries, tokens))

        placed, q = image + positions, tokens + token_pe
        tokens = second.norm1(tokens + second.self_attn(q, q, tokens))
        to_image = second.cross_attn_token_to_image
        tokens = _refined(second, tokens + _seen(to_image, tokens + token_pe, image, placed))
        to_token = second.cross_attn_image_to_token
        scores = _scores(to_token, tokens + token_pe, placed)
        image = second.norm4(image + _spread(to_token, scores, tokens))

        # Nobody asks what became of the prompt's own tokens.
        tokens, token_pe = tokens[:, : len(outputs)], token_pe[:, : len(outputs)]
        transformer: Any = decoder.transformer
        last = transformer.final_attn_token_to_image
        seen = _seen(last, tokens + token_pe, image, image + positions)
        tokens = transformer.norm_final_attn(tokens + seen)
        hyper = torch.stack(
            [mlp(tokens[0, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        )
        side = encoder.image_embedding_size[1]
        shown = image.unflatten(0, (-1, side)).index_select(0, rows).index_select(1, columns)
        return _draw(decoder, shown, hyper), decoder.iou_prediction_head(tokens[:, 0])


def _blocks(decoder: PromptedMaskDecoder) -> tuple[TwoWayAttentionBlock, TwoWayAttentionBlock]:
    layers: Any = decoder.mask_decoder.transformer.layers
    first, second = layers
    assert isinstance(first, TwoWayAttentionBlock) and isinstance(second, TwoWayAttentionBlock)
    return first, second


def _positions(encoder: PromptEncoder) -> Tensor:
    """[S, C]. Computed in the graph: four megabytes that need not be sent."""
    return encoder.get_dense_pe()[0].flatten(1).t()


def _heads(x: Tensor) -> Tensor:
    """[S, 128] → [8, S, 16]."""
    return x.unflatten(-1, (_HEADS, -1)).transpose(0, 1)


def _asking(attention: Attention, q: Tensor) -> Tensor:
    """Scaled queries [1, T, C] → [8, T, 16]."""
    return attention._split_heads(attention.q_proj(q) * attention.scale)[0]


def _attended(attention: Attention, scores: Tensor, values: Tensor) -> Tensor:
    """Scores [8, T, S] and values [8, S, 16] → [1, T, C]."""
    out = (scores.softmax(dim=-1) @ values).transpose(0, 1).flatten(1)
    return attention.out_proj(out[None])


def _refined(block: TwoWayAttentionBlock, tokens: Tensor) -> Tensor:
    tokens = block.norm2(tokens)
    return block.norm3(tokens + block.mlp(tokens))


def _seen(attention: Attention, q: Tensor, image: Tensor, placed: Tensor) -> Tensor:
    """As ``Attention.tokens_to_image``, the image [S, C] with its positions added already."""
    q = (_asking(attention, q) @ attention._per_head(attention.k_proj)).flatten(0, 1)
    weights = (q @ placed.t()).softmax(dim=-1)
    seen = (weights @ image).unflatten(0, (_HEADS, -1))
    values = seen @ attention._per_head(attention.v_proj).transpose(-1, -2)
    return attention.out_proj(values.transpose(0, 1).flatten(1)[None] + attention.v_proj.bias)


def _scores(attention: Attention, k: Tensor, placed: Tensor) -> Tensor:
    """Of the image's queries and the tokens' keys, [8, T, S]."""
    k = attention._split_heads(attention.k_proj(k) * attention.scale)[0]
    bias = k @ attention.q_proj.bias.unflatten(0, (_HEADS, -1, 1))
    k = (k @ attention._per_head(attention.q_proj)).flatten(0, 1)
    return (k @ placed.t() + bias.flatten(0, 1)).unflatten(0, (_HEADS, -1))


def _spread(attention: Attention, scores: Tensor, v: Tensor) -> Tensor:
    """What the image takes from the tokens: scores [8, T, S], v [1, T, C] → [S, C]."""
    weights = scores.softmax(dim=1).flatten(0, 1)
    out_weight = attention.out_proj.weight.t().unflatten(0, (_HEADS, -1))
    values = attention._split_heads(attention.v_proj(v))[0] @ out_weight
    return weights.t() @ (values.flatten(0, 1) + attention.out_proj.bias / _HEADS)


def _draw(decoder: MaskDecoder, image: Tensor, hyper: Tensor) -> Tensor:
    """As ``MaskDecoder.draw``: image [R, Q, C], hyper [M, C / 8] → [1, M, 4R, 4Q]."""
    height, width = image.shape[:2]
    layers: list[Any] = list(decoder.output_upscaling)
    first, norm, _, second, _ = layers
    pixels = norm.over_last(split_pixels(first, image.flatten(0, 1)))  # [R·Q, 4, C / 4]
    pixels = F.gelu(pixels.flatten(0, 1), approximate="tanh")
    pixels = F.gelu(split_pixels(second, pixels), approximate="tanh")  # [R·Q·4, 4, C / 8]
    masks = pixels.flatten(0, 1) @ hyper.t()
    masks = masks.unflatten(0, (height, width, 2, 2, 2, 2)).permute(6, 0, 2, 4, 1, 3, 5)
    return masks.flatten(4, 6).flatten(1, 3)[None]

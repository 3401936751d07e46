"""The mask decoder's transformer: tokens and image attend to each other.

Written from the paper (Segment Anything, arXiv:2304.02643, section A "Model details") and the
shapes in Meta's checkpoints.

Shapes: B prompts, T tokens, S image tokens, C = 256 channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.checkpoints.config import (
    DECODER_DEPTH,
    DECODER_MLP_DIM,
    DECODER_NUM_HEADS,
    PROMPT_EMBED_DIM,
)


class Attention(nn.Module):
    """The projections of multi-head attention whose heads may be narrower than the embedding.

    Args:
        downsample_rate: the width of queries, keys and values is ``PROMPT_EMBED_DIM`` over this.
    """

    def __init__(self, downsample_rate: int = 1) -> None:
        super().__init__()
        channels, inner = PROMPT_EMBED_DIM, PROMPT_EMBED_DIM // downsample_rate
        self.num_heads = DECODER_NUM_HEADS
        self.scale = (inner // self.num_heads) ** -0.5
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, T, inner] → [B, heads, T, inner / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _per_head(self, projection: nn.Linear) -> Tensor:
        """The weight of ``q_proj``, ``k_proj`` or ``v_proj`` as [heads, inner / heads, C]."""
        return projection.weight.unflatten(0, (self.num_heads, -1))


class SelfAttention(Attention):
    """Tokens on tokens, a handful of them."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, C], k and v [B, S, C] → [B, T, C]."""
        q = self._split_heads(self.q_proj(q))
        k = self._split_heads(self.k_proj(k))
        v = self._split_heads(self.v_proj(v))
        weights = (self.scale * q @ k.transpose(-1, -2)).softmax(dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class TokenToImageAttention(Attention):
    """The tokens' queries on the image, without projecting the image.

    A handful of tokens T asks thousands of image tokens S, so the image's projections cost most.
    They are moved to the tokens' side: q·(W_k x) = (W_kᵀ q)·x, and Σ w (W_v x) = W_v Σ w x. That
    is fewer operations up to some 16 tokens, and no projected image goes through memory. The
    bias of ``k_proj`` shifts all scores of a query alike and so drops out of the softmax.
    """

    def forward(self, q: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
        """Keys are the image and its positions, values the image.

        Args:
            q: [B, T, C].
            image: [B, S, C], or [S, C] shared by all.
            image_pe: [S, C].

        Returns:
            [B, T, C].
        """
        q = self._split_heads(self.q_proj(q) * self.scale) @ self._per_head(self.k_proj)
        q = q.flatten(1, 2)
        weights = (q @ image.transpose(-1, -2) + q @ image_pe.t()).softmax(dim=-1)
        seen = (weights @ image).unflatten(1, (self.num_heads, -1))
        out = (seen @ self._per_head(self.v_proj).transpose(-1, -2)).transpose(1, 2).flatten(2)
        return self.out_proj(out + self.v_proj.bias)


class ImageToTokenAttention(Attention):
    """The image's queries on the tokens, without projecting the image.

    As in ``TokenToImageAttention``, the projections of the many are moved to the few: ``q_proj``
    to the keys' side and ``out_proj`` to the values'.
    """

    def forward(self, image: Tensor, image_pe: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries are the image and its positions.

        Args:
            image: [B, S, C], or [S, C] shared by all.
            image_pe: [S, C].
            k, v: [B, T, C].

        Returns:
            [B, S, C].
        """
        k = self._split_heads(self.k_proj(k) * self.scale)
        bias = k @ self.q_proj.bias.unflatten(0, (self.num_heads, -1, 1))
        k = (k @ self._per_head(self.q_proj)).flatten(1, 2)
        scores = k @ image.transpose(-1, -2) + (k @ image_pe.t() + bias.flatten(1, 2))
        weights = scores.unflatten(1, (self.num_heads, -1)).softmax(dim=2).flatten(1, 2)
        out_weight = self.out_proj.weight.t().unflatten(0, (self.num_heads, -1))
        v = self._split_heads(self.v_proj(v)) @ out_weight
        # A head's weights sum to one, so each head brings its share of the bias.
        v = v.flatten(1, 2) + self.out_proj.bias / self.num_heads
        return weights.transpose(1, 2) @ v


class MLPBlock(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(PROMPT_EMBED_DIM, DECODER_MLP_DIM)
        self.lin2 = nn.Linear(DECODER_MLP_DIM, PROMPT_EMBED_DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens.

    Args:
        first: in the first block the self-attention takes no positions and has no residual.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = SelfAttention()
        self.norm1 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.cross_attn_token_to_image = TokenToImageAttention(downsample_rate=2)
        self.norm2 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.mlp = MLPBlock()
        self.norm3 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.norm4 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.cross_attn_image_to_token = ImageToTokenAttention(downsample_rate=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens [B, T, C], image [B, S, C] or [S, C], with their positions → both, updated."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, image, image_pe)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(image, image_pe, tokens + token_pe, tokens)
        return tokens, self.norm4(image + update)


class TwoWayTransformer(nn.Module):
    """Two blocks, and a last attention from the tokens to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayAttentionBlock(i == 0) for i in range(DECODER_DEPTH))
        self.final_attn_token_to_image = TokenToImageAttention(downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(PROMPT_EMBED_DIM)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides after the last layer.

        Args:
            image: [B, S, C] image tokens, or [S, C] shared by all prompts.
            image_pe: [S, C] their positions.
            tokens: [B, T, C] output and prompt tokens, which are their own positions.

        Returns:
            Tokens [B, T, C] and image tokens [B, S, C].
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        update = self.final_attn_token_to_image(tokens + token_pe, image, image_pe)
        return self.norm_final_attn(tokens + update), image

"""The mask decoder's transformer: tokens and image attend to each other.

Written from the paper (Segment Anything, arXiv:2304.02643, section A "Model details") and the
shapes in Meta's checkpoints. Modules, arguments and ``forward`` are as in Meta's
``segment_anything/modeling/transformer.py``. The decoder itself calls ``on_tokens``, which takes an
image that all prompts share, and where layers are as they were made moves the image's projections
to the tokens' side.

Shapes: B prompts, T tokens, S image tokens, C = 256 channels.
"""

import torch
from torch import Tensor, nn

from samtrt.modeling.layers import MLPBlock, are_plain, in_rows


class Attention(nn.Module):
    """Multi-head attention whose heads may be narrower than the embedding.

    Args:
        embedding_dim: channels C.
        num_heads: attention heads.
        downsample_rate: the width of queries, keys and values is C over this.
    """

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        if self.internal_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not share out {self.internal_dim} channels")
        self.scale = (self.internal_dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.k_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.v_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, C], k and v [B, S, C] → [B, T, C]."""
        q = self._split_heads(self.q_proj(q))
        k = self._split_heads(self.k_proj(k))
        v = self._split_heads(self.v_proj(v))
        weights = (self.scale * q @ k.transpose(-1, -2)).softmax(dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def tokens_to_image(self, q: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
        """``forward`` with the tokens' queries, without projecting the image.

        A handful of tokens T asks thousands of image tokens S, so the image's projections cost
        most. They are moved to the tokens' side: q·(W_k x) = (W_kᵀ q)·x, and Σ w (W_v x) = W_v Σ w
        x. That is fewer operations up to some 16 tokens, and no projected image goes through
        memory. The bias of ``k_proj`` shifts all scores of a query alike and so drops out of the
        softmax.

        Args:
            q: [B, T, C].
            image: [B, S, C], or [S, C] shared by all.
            image_pe: [S, C], or [B, S, C].

        Returns:
            [B, T, C].
        """
        q = self._split_heads(self.q_proj(q) * self.scale) @ self._per_head(self.k_proj)
        weights = _scores(q.flatten(1, 2), image, image_pe).softmax(dim=-1)
        seen = (weights @ image).unflatten(1, (self.num_heads, -1))
        out = (seen @ self._per_head(self.v_proj).transpose(-1, -2)).transpose(1, 2).flatten(2)
        return self.out_proj(out + self.v_proj.bias)

    def image_to_tokens(
        self, image: Tensor, image_pe: Tensor, k: Tensor, v: Tensor, norm: nn.Module
    ) -> Tensor:
        """``norm(image + forward(image + image_pe, k, v))`` without projecting the image.

        As in ``tokens_to_image``, the projections of the many are moved to the few: ``q_proj`` to
        the keys' side and ``out_proj`` to the values'. Each image token is then by itself.

        Args:
            image: [B, S, C], or [S, C] shared by all.
            image_pe: [S, C], or [B, S, C].
            k, v: [B, T, C].
            norm: of the channels.

        Returns:
            [B, S, C].
        """
        k = self._split_heads(self.k_proj(k) * self.scale)
        bias = (k @ self.q_proj.bias.unflatten(0, (self.num_heads, -1, 1))).flatten(1, 2)
        k = (k @ self._per_head(self.q_proj)).flatten(1, 2)
        out_weight = self.out_proj.weight.t().unflatten(0, (self.num_heads, -1))
        v = self._split_heads(self.v_proj(v)) @ out_weight
        # A head's weights sum to one, so each head brings its share of the bias.
        v = v.flatten(1, 2) + self.out_proj.bias / self.num_heads

        def updated(image: Tensor, image_pe: Tensor) -> Tensor:
            scores = _scores(k, image, image_pe) + bias
            weights = scores.unflatten(1, (self.num_heads, -1)).softmax(dim=2).flatten(1, 2)
            found: Tensor = norm(torch.baddbmm(image, weights.transpose(1, 2), v))
            return found

        return in_rows(updated, image, image_pe)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, T, inner] → [B, heads, T, inner / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _per_head(self, projection: nn.Linear) -> Tensor:
        """The weight of ``q_proj``, ``k_proj`` or ``v_proj`` as [heads, inner / heads, C]."""
        return projection.weight.unflatten(0, (self.num_heads, -1))


def _scores(tokens: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
    """tokens · (image + image_pe): [B, T, C], [B, S, C] or [S, C] → [B, T, S]."""
    if image.dim() == 2:
        return tokens @ (image + image_pe).transpose(-1, -2)
    # An image of each prompt's own is large: positions are multiplied apart, not added to it.
    positions = tokens @ image_pe.transpose(-1, -2)
    return torch.baddbmm(positions, tokens, image.transpose(-1, -2))


def _is_as_made(attention: nn.Module) -> bool:
    """Whether the projections' parameters say all that an ``Attention`` computes."""
    return are_plain(Attention, attention) and are_plain(nn.Linear, *attention.children())


def _tokens_to_image(attention: nn.Module, q: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
    if _is_as_made(attention):
        return attention.tokens_to_image(q, image, image_pe)  # type: ignore[operator]
    image = image.expand(len(q), -1, -1)
    return attention(q=q, k=image + image_pe, v=image)


def _image_to_tokens(
    attention: nn.Module, image: Tensor, image_pe: Tensor, k: Tensor, v: Tensor, norm: nn.Module
) -> Tensor:
    if _is_as_made(attention):
        return attention.image_to_tokens(image, image_pe, k, v, norm)  # type: ignore[operator]
    image = image.expand(len(k), -1, -1)
    found: Tensor = norm(image + attention(q=image + image_pe, k=k, v=v))
    return found


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens.

    Args:
        embedding_dim: channels C.
        num_heads: heads of each attention.
        mlp_dim: hidden channels of the MLP.
        activation: of the MLP.
        attention_downsample_rate: of the two attentions between tokens and image.
        skip_first_layer_pe: in the first block the self-attention takes no positions and has no
            residual.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int = 2048,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
        skip_first_layer_pe: bool = False,
    ) -> None:
        super().__init__()
        rate = attention_downsample_rate
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, rate)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, activation)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, rate)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both sides, updated.

        Args:
            queries: tokens [B, T, C].
            keys: the image [B, S, C], or [S, C] shared by all.
            query_pe: positions [B, T, C].
            key_pe: positions [B, S, C], or [S, C].
        """
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)
        q = queries + query_pe
        queries = queries + _tokens_to_image(self.cross_attn_token_to_image, q, keys, key_pe)
        queries = self.norm2(queries)
        queries = self.norm3(queries + self.mlp(queries))
        keys = _image_to_tokens(
            self.cross_attn_image_to_token, keys, key_pe, queries + query_pe, queries, self.norm4
        )
        return queries, keys


class TwoWayTransformer(nn.Module):
    """Blocks, and a last attention from the tokens to the image.

    Args:
        depth: blocks.
        embedding_dim, num_heads, mlp_dim, activation, attention_downsample_rate: see
            ``TwoWayAttentionBlock``.
    """

    def __init__(
        self,
        depth: int,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.embedding_dim = embedding_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(
                embedding_dim, num_heads, mlp_dim, activation, attention_downsample_rate, i == 0
            )
            for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(
            embedding_dim, num_heads, attention_downsample_rate
        )
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, C] and image tokens [B, S, C] after the last layer.

        Args:
            image_embedding: [B, C, h, w].
            image_pe: [B, C, h, w], or [1, C, h, w] for all.
            point_embedding: [B, T, C].
        """
        image, positions = (x.flatten(2).transpose(1, 2) for x in (image_embedding, image_pe))
        return self.on_tokens(image, positions, point_embedding)

    def on_tokens(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides after the last layer.

        Args:
            image: [B, S, C] image tokens, or [S, C] shared by all prompts.
            image_pe: [S, C] their positions, or [B, S, C].
            tokens: [B, T, C] output and prompt tokens, which are their own positions.

        Returns:
            Tokens [B, T, C] and image tokens [B, S, C].
        """
        token_pe = tokens
        for layer in self.layers:
            if not are_plain(TwoWayAttentionBlock, layer):
                image = image.expand(len(tokens), -1, -1)
            tokens, image = layer(queries=tokens, keys=image, query_pe=token_pe, key_pe=image_pe)
        q = tokens + token_pe
        update = _tokens_to_image(self.final_attn_token_to_image, q, image, image_pe)
        return self.norm_final_attn(tokens + update), image

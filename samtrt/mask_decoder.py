"""SAM's mask decoder as a torch module with Meta's parameter names; both decoders in one module.

Written from the paper (Segment Anything, arXiv:2304.02643, section A "Model details") and the
shapes in Meta's checkpoints. Two things differ from Meta's modules, and neither changes a value:
nothing depends on the values in a tensor (no boolean indexing), so that the modules can be
captured in a CUDA graph and exported to ONNX; and what all prompts share (the image tokens before
the first update) is computed once and not once a prompt.

Shapes: B prompts, N points a prompt, T tokens, C = 256 channels, a grid of h×w image tokens.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.config import (
    DECODER_DEPTH,
    DECODER_MLP_DIM,
    DECODER_NUM_HEADS,
    NUM_MULTIMASK_OUTPUTS,
    PROMPT_EMBED_DIM,
    EncoderConfig,
)
from samtrt.errors import CheckpointError
from samtrt.prompt_encoder import LayerNorm2d, PromptEncoder


class Attention(nn.Module):
    """Multi-head attention whose heads may be narrower than the embedding.

    Args:
        downsample_rate: the width of queries, keys and values is ``PROMPT_EMBED_DIM`` over this.
    """

    def __init__(self, downsample_rate: int = 1) -> None:
        super().__init__()
        channels, inner = PROMPT_EMBED_DIM, PROMPT_EMBED_DIM // downsample_rate
        self.num_heads = DECODER_NUM_HEADS
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, C], k and v [B, S, C] → [B, T, C]; a batch of 1 is shared by the other's B."""
        q = self._split_heads(self.q_proj(q))
        k = self._split_heads(self.k_proj(k))
        v = self._split_heads(self.v_proj(v))
        weights = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
        out = weights.softmax(dim=-1) @ v
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, T, inner] → [B, heads, T, inner / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


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
        self.self_attn = Attention()
        self.norm1 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.cross_attn_token_to_image = Attention(downsample_rate=2)
        self.norm2 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.mlp = MLPBlock()
        self.norm3 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.norm4 = nn.LayerNorm(PROMPT_EMBED_DIM)
        self.cross_attn_image_to_token = Attention(downsample_rate=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens [B, T, C] and image [B or 1, h·w, C] with their positions → both, updated."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        placed_image = image + image_pe
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, placed_image, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(placed_image, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Two blocks, and a last attention from the tokens to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayAttentionBlock(i == 0) for i in range(DECODER_DEPTH))
        self.final_attn_token_to_image = Attention(downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(PROMPT_EMBED_DIM)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides after the last layer.

        Args:
            image: [B or 1, h·w, C] image tokens.
            image_pe: [1, h·w, C] their positions.
            tokens: [B, T, C] output and prompt tokens, which are their own positions.

        Returns:
            Tokens [B, T, C] and image tokens [B, h·w, C].
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        update = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + update), image


class MLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        widths = (PROMPT_EMBED_DIM, PROMPT_EMBED_DIM, PROMPT_EMBED_DIM, out_features)
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class MaskDecoder(nn.Module):
    """Image and prompt embeddings → mask logits and predicted IoUs.

    Mask 0 is the single answer for a prompt that is not ambiguous; masks 1…3 are whole, part and
    subpart.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = PROMPT_EMBED_DIM
        self.num_mask_tokens = NUM_MULTIMASK_OUTPUTS + 1
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels // 8) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(self.num_mask_tokens)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """``predict_masks``, of which masks 1…3 (multimask) or mask 0 are kept."""
        masks, iou_predictions = self.predict_masks(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        )
        return select_masks(masks, iou_predictions, multimask_output)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All four masks of each prompt.

        Args:
            image_embeddings: [1, C, h, w], shared by all prompts, or [B, C, h, w].
            image_pe: [1, C, h, w] of ``PromptEncoder.get_dense_pe``.
            sparse_prompt_embeddings: [B, T, C].
            dense_prompt_embeddings: [B, C, h, w], or of batch 1 and shared by all prompts.

        Returns:
            Logits [B, 4, 4h, 4w] and predicted IoUs [B, 4].
        """
        batch = sparse_prompt_embeddings.shape[0]
        outputs = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((outputs.expand(batch, -1, -1), sparse_prompt_embeddings), dim=1)
        image = (image_embeddings + dense_prompt_embeddings).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2), tokens)

        grid = image_embeddings.shape[-2:]
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        hyper = torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        masks = (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return masks, self.iou_prediction_head(tokens[:, 0])


def select_masks(
    masks: Tensor, iou_predictions: Tensor, multimask_output: bool
) -> tuple[Tensor, Tensor]:
    """Of [B, 4, …] keeps masks 1…3 for ``multimask_output``, mask 0 otherwise."""
    kept = slice(1, None) if multimask_output else slice(0, 1)
    return masks[:, kept], iou_predictions[:, kept]


class PromptedMaskDecoder(nn.Module):
    """Prompt encoder and mask decoder in one, called as Meta's ONNX model is called.

    Its ``state_dict`` has the keys of Meta's checkpoints: ``prompt_encoder.…``,
    ``mask_decoder.…``.

    Args:
        img_size: side of the model's square frame, in pixels.
        grid_size: side of the grid of image tokens.
    """

    image_pe: Tensor

    def __init__(self, img_size: int, grid_size: int) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(img_size, grid_size)
        self.mask_decoder = MaskDecoder()
        self._cache_image_pe()
        self.register_load_state_dict_post_hook(lambda module, _: module._cache_image_pe())

    def _cache_image_pe(self) -> None:
        """Keeps the positional encoding of the image tokens, which no prompt changes."""
        image_pe = self.prompt_encoder.get_dense_pe().detach()
        self.register_buffer("image_pe", image_pe, persistent=False)

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All four masks of each prompt.

        Args:
            image_embeddings: [1, 256, h, w], shared by all prompts, or [B, 256, h, w].
            point_coords: [B, N, 2] (x, y) in pixels of the model's frame.
            point_labels: [B, N]; see ``PromptEncoder.embed_points`` and ``prompt_points``.
            mask_input: [B, 1, 4h, 4w] logits of an earlier call; None for none.
            has_mask_input: [1], 1.0 where ``mask_input`` counts and 0.0 where it does not;
                None means that it counts when it is there.

        Returns:
            Logits [B, 4, 4h, 4w] and predicted IoUs [B, 4].
        """
        encoder = self.prompt_encoder
        dense = encoder.embed_no_mask()
        if mask_input is not None:
            mask = encoder.embed_masks(mask_input)
            weight = 1.0 if has_mask_input is None else has_mask_input
            dense = weight * mask + (1 - weight) * dense
        return self.mask_decoder.predict_masks(
            image_embeddings,
            self.image_pe,
            encoder.embed_points(point_coords, point_labels),
            dense,
        )


def build_mask_decoder(
    tensors: Mapping[str, np.ndarray], config: EncoderConfig
) -> PromptedMaskDecoder:
    """The decoder with a checkpoint's parameters, in fp32 on the CPU, in inference mode.

    Args:
        tensors: ``Parameters.decoder()``: arrays under Meta's keys, prefixes kept.
        config: of the encoder whose embeddings will be decoded.

    Raises:
        CheckpointError: keys or shapes that are not those of SAM's decoder.
    """
    decoder = PromptedMaskDecoder(config.img_size, config.grid_size)
    state = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in tensors.items()}
    try:
        decoder.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise CheckpointError(
            f"not the parameters of a SAM mask decoder: {details}; convert the checkpoint again"
        ) from error
    return decoder.eval().requires_grad_(False)

"""SAM-HQ's mask decoder (Segment Anything in High Quality, arXiv:2306.01567).

A fifth output token draws one more mask, on features that the early blocks of the image encoder
have kept; it is added to the mask that SAM's own tokens draw.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samtrt.modeling.layers import LayerNorm2d
from samtrt.modeling.mask_decoder import MLP, MaskDecoder, select_masks


def _upscaling(in_channels: int, middle: int, out_channels: int) -> nn.Sequential:
    """[B, C_in, h, w] → [B, C_out, 4h, 4w]."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, middle, kernel_size=2, stride=2),
        LayerNorm2d(middle),
        nn.GELU(),
        nn.ConvTranspose2d(middle, out_channels, kernel_size=2, stride=2),
    )


class MaskDecoderHQ(MaskDecoder):
    """Image and prompt embeddings → mask logits and predicted IoUs.

    Where ``MaskDecoder`` takes an embedding [B, 256, h, w], this takes [B, 256 + C, h, w]: the
    embedding and, as further channels, the output of the image encoder's first global block
    (``EncoderConfig.taps``).

    Args:
        vit_dim: channels C of the image encoder's tokens.
        arguments: ``MaskDecoder``'s.

    Attributes:
        hq_token_only: whether a mask is that of the HQ token alone, and not its sum with SAM's.
    """

    def __init__(self, *, vit_dim: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        channels = self.transformer_dim
        self.embedding_chans = channels + vit_dim
        self.hq_token_only = False
        self.hf_token = nn.Embedding(1, channels)
        self.hf_mlp = MLP(channels, channels, channels // 8, 3)
        self.compress_vit_feat = _upscaling(vit_dim, channels, channels // 8)
        self.embedding_encoder = _upscaling(channels, channels // 4, channels // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(channels // 8, channels // 4, 3, padding=1),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 8, 3, padding=1),
        )

    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        hq_token_only: bool,
        interm_embeddings: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """As SAM-HQ's module: one mask a prompt, logits [B, 1, 4h, 4w] and IoUs [B, 1].

        Args:
            image_embeddings: [1, 256, h, w].
            interm_embeddings: outputs of the image encoder's global blocks, [1, h, w, C] each, of
                which the first is used.
        """
        both = self.with_early(image_embeddings, interm_embeddings)
        tokens, image = self.attend(
            both, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        )
        masks = self.draw(tokens, image, both, hq_token_only=hq_token_only)
        return self.select(masks, self.predict_ious(tokens), multimask_output)

    @staticmethod
    def with_early(
        image_embeddings: Tensor, interm_embeddings: Sequence[Tensor] | Tensor
    ) -> Tensor:
        """[1, 256 + C, h, w] of ``forward``'s, as the other methods take them."""
        early = interm_embeddings[0].permute(0, 3, 1, 2)
        return torch.cat((image_embeddings, early), dim=1)

    def select(
        self, masks: Tensor, iou_predictions: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """One mask of [B, 4, …]: the best of masks 1…3 (multimask), or mask 0."""
        masks, iou_predictions = select_masks(masks, iou_predictions, multimask_output)
        best = iou_predictions.argmax(dim=1)
        prompt = torch.arange(best.shape[0], device=best.device)  # (`len` would be a constant)
        return masks[prompt, best].unsqueeze(1), iou_predictions[prompt, best].unsqueeze(1)

    def answers(self, multimask_output: bool) -> int:
        return 1

    def prepare(self, image_embeddings: Tensor) -> Tensor:
        """The HQ features [B, 32, 4h, 4w] of embeddings [B, 256 + C, h, w], for all prompts."""
        embedding = image_embeddings[:, : self.transformer_dim]
        early = image_embeddings[:, self.transformer_dim :]
        found: Tensor = self.embedding_encoder(embedding) + self.compress_vit_feat(early)
        return found

    def attend(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As ``MaskDecoder``'s, which the early features have no part in."""
        embedding = image_embeddings[:, : self.transformer_dim]
        return super().attend(embedding, image_pe, sparse, dense)

    def draw(
        self,
        tokens: Tensor,
        image: Tensor,
        image_embeddings: Tensor,
        prepared: Tensor | None = None,
        hq_token_only: bool | None = None,
    ) -> Tensor:
        """SAM's four masks of each prompt, each with the HQ token's added to it.

        The arguments are ``MaskDecoder``'s, but for the embeddings' channels; ``hq_token_only`` is
        the attribute's unless it is given.
        """
        if prepared is None:
            prepared = self.prepare(image_embeddings)
        pixels = self._pixels(image, image_embeddings.shape[-2:])
        finer = self.embedding_maskfeature(pixels) + prepared
        hq = self._times(self.hf_mlp(tokens[:, 1 + self.num_mask_tokens])[:, None], finer)
        if self.hq_token_only if hq_token_only is None else hq_token_only:
            return hq.expand(-1, self.num_mask_tokens, -1, -1)
        return self._times(self._hypernetworks(tokens), pixels) + hq

    def _output_tokens(self) -> Tensor:
        return torch.cat((super()._output_tokens(), self.hf_token.weight))

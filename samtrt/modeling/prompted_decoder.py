"""Prompt encoder and mask decoder in one, and how they are made: with fresh parameters, or with a
checkpoint's."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samtrt.checkpoints.config import (
    DECODER_DEPTH,
    DECODER_MLP_DIM,
    DECODER_NUM_HEADS,
    MASK_IN_CHANS,
    PROMPT_EMBED_DIM,
    EncoderConfig,
)
from samtrt.checkpoints.shapes import HQ_TOKEN
from samtrt.errors import CheckpointError
from samtrt.modeling.mask_decoder import MaskDecoder
from samtrt.modeling.mask_decoder_hq import MaskDecoderHQ
from samtrt.modeling.prompt_encoder import PromptEncoder
from samtrt.modeling.transformer import TwoWayTransformer

# Prompts decoded at once on the CPU: larger tensors fall out of the caches, and come from the
# operating system page by page.
_CPU_CHUNK = 4


class PromptedMaskDecoder(nn.Module):
    """Prompt encoder and mask decoder in one, called as Meta's ONNX model is called.

    Its ``state_dict`` has the keys of Meta's checkpoints: ``prompt_encoder.…``,
    ``mask_decoder.…``.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

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
            image_embeddings: [1, 256, h, w], shared by all prompts, or [B, 256, h, w]; SAM-HQ's
                have more channels (``MaskDecoderHQ``).
            point_coords: [B, N, 2] (x, y) in pixels of the model's frame.
            point_labels: [B, N]; see ``PromptEncoder.embed_points`` and ``prompt_points``.
            mask_input: [B, 1, 4h, 4w] logits of an earlier call; None for none.
            has_mask_input: [1], 1.0 where ``mask_input`` counts and 0.0 where it does not;
                None means that it counts when it is there.

        Returns:
            Logits [B, 4, 4h, 4w] and predicted IoUs [B, 4].
        """
        parts = [
            self.decode(*few)
            for few in self._a_few(
                image_embeddings, point_coords, point_labels, mask_input, has_mask_input
            )
        ]
        if len(parts) == 1:
            return parts[0]
        masks, iou_predictions = zip(*parts, strict=True)
        return torch.cat(masks), torch.cat(iou_predictions)

    def masks_above(
        self,
        least_iou: float,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the masks 1…3 of each prompt those whose predicted IoU is above; others are not drawn.

        Args:
            least_iou: not itself enough.
            image_embeddings, point_coords, point_labels, mask_input: ``forward``'s.

        Returns:
            Logits [K, 4h, 4w], their indices [K] among the B · M masks, and predicted IoUs
            [B, M], where M masks a prompt are what ``MaskDecoder.select`` keeps.
        """
        decoder = self.mask_decoder
        masks: list[Tensor] = []
        scores: list[Tensor] = []
        for few in self._a_few(image_embeddings, point_coords, point_labels, mask_input, None):
            embedding, image_pe, *prompts, prepared = few
            tokens, image = decoder.attend(embedding, image_pe, *self._embed(*prompts))
            all_four = decoder.predict_ious(tokens)
            _, predicted = decoder.select(all_four, all_four, True)
            scores.append(predicted)
            passing = predicted > least_iou
            chosen = passing.any(dim=1).nonzero()[:, 0]
            if not len(chosen):
                continue
            if len(embedding) > 1:  # a picture for each prompt
                embedding = embedding[chosen]
                prepared = None if prepared is None else prepared[chosen]
            drawn = decoder.draw(tokens[chosen], image[chosen], embedding, prepared)
            drawn, _ = decoder.select(drawn, all_four[chosen], True)
            masks.append(drawn[passing[chosen]])
        found = torch.cat(scores)
        if not masks:
            masks.append(image_embeddings.new_empty(0, *self.prompt_encoder.mask_input_size))
        return torch.cat(masks), (found > least_iou).flatten().nonzero()[:, 0], found

    def _a_few(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None,
        has_mask_input: Tensor | None,
    ) -> Iterator[list[Any]]:
        """The arguments of ``decode``, for all prompts, on the CPU for a few at a time."""
        given: list[Any] = [
            image_embeddings,
            self.prompt_encoder.get_dense_pe(),
            point_coords,
            point_labels,
            mask_input,
            has_mask_input,
            self.mask_decoder.prepare(image_embeddings),
        ]
        batch = point_coords.shape[0]
        if point_coords.is_cuda or batch <= _CPU_CHUNK:
            yield given
            return
        for i in range(0, batch, _CPU_CHUNK):
            # Of a batch of 1, every chunk gets the same.
            yield [t if t is None or len(t) == 1 else t[i : i + _CPU_CHUNK] for t in given]

    def decode(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
        prepared: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``forward`` in one go, whatever the number of prompts; what is exported.

        Args:
            image_pe: [1, 256, h, w] of ``PromptEncoder.get_dense_pe``, which no prompt changes.
            prepared: see ``MaskDecoder.predict_masks``.
        """
        sparse, dense = self._embed(point_coords, point_labels, mask_input, has_mask_input)
        return self.mask_decoder.predict_masks(image_embeddings, image_pe, sparse, dense, prepared)

    def _embed(
        self,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None,
        has_mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Sparse [B, N, C] and dense [B, C, h, w], or [1, C, 1, 1], embeddings of the prompts."""
        encoder = self.prompt_encoder
        dense = encoder.embed_no_mask()
        if mask_input is not None:
            mask = encoder.embed_masks(mask_input)
            weight = 1.0 if has_mask_input is None else has_mask_input
            dense = weight * mask + (1 - weight) * dense
        return encoder.embed_points(point_coords, point_labels), dense


def new_mask_decoder(config: EncoderConfig, hq: bool = False) -> PromptedMaskDecoder:
    """A decoder with fresh parameters, as Meta initialises them, for an encoder of these sizes.

    Args:
        hq: SAM-HQ's.
    """
    channels, grid = PROMPT_EMBED_DIM, config.grid_size
    prompt_encoder = PromptEncoder(
        channels, (grid, grid), (config.img_size, config.img_size), MASK_IN_CHANS
    )
    transformer = TwoWayTransformer(DECODER_DEPTH, channels, DECODER_NUM_HEADS, DECODER_MLP_DIM)
    if hq:
        mask_decoder: MaskDecoder = MaskDecoderHQ(
            transformer_dim=channels, transformer=transformer, vit_dim=config.embed_dim
        )
    else:
        mask_decoder = MaskDecoder(transformer_dim=channels, transformer=transformer)
    return PromptedMaskDecoder(prompt_encoder, mask_decoder)


def build_mask_decoder(
    tensors: Mapping[str, np.ndarray], config: EncoderConfig
) -> PromptedMaskDecoder:
    """The decoder with a checkpoint's parameters, in fp32 on the CPU, in inference mode.

    Args:
        tensors: ``Parameters.decoder()``: arrays under Meta's keys, prefixes kept.
        config: of the encoder whose embeddings will be decoded.

    Raises:
        CheckpointError: keys or shapes that are not those of SAM's decoder, or none.
    """
    if not tensors:
        raise CheckpointError(
            "these parameters are an image encoder alone, of a model with other decoders than "
            "SAM's; use samtrt.load_image_encoder, or take a SAM's for masks"
        )
    with torch.device("meta"):  # no memory, and no random numbers of the caller's
        decoder = new_mask_decoder(config, hq=HQ_TOKEN in tensors)
    state = {}
    with torch.inference_mode(False):
        for key, value in tensors.items():
            state[key] = torch.from_numpy(np.array(value, np.float32))
    try:
        decoder.load_state_dict(state, assign=True)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise CheckpointError(
            f"not the parameters of a SAM mask decoder: {details}; convert the checkpoint again"
        ) from error
    return decoder.eval().requires_grad_(False)

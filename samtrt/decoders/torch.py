"""The mask decoder in torch."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import check_channels, check_fits, drawn_above, no_masks
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.modeling.mask_decoder import MaskDecoder
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder, build_mask_decoder
from samtrt.torch_state import as_written

if TYPE_CHECKING:
    from typing_extensions import Self


class TorchDecoder:
    """The mask decoder's modules as they are, on their own device; a ``Decoder``.

    Args:
        module: the prompt encoder and mask decoder; used, not copied.
        parameters_sha256, note: see ``Decoder``.
    """

    num_masks = 4

    def __init__(
        self, module: PromptedMaskDecoder, parameters_sha256: str = "", note: str = ""
    ) -> None:
        self.module = module
        self.img_size = module.prompt_encoder.input_image_size[0]
        self.parameters_sha256 = parameters_sha256
        self.note = note

    @classmethod
    def from_parameters(cls, parameters: Parameters, device: torch.device | str = "cpu") -> "Self":
        """The decoder of a parameter set, fp32.

        Raises:
            CheckpointError: tensors that are not a SAM mask decoder's.
        """
        module = build_mask_decoder(parameters.decoder(), parameters.encoder_config)
        return cls(module.to(device), parameters.sha256, parameters.note)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return self.module.prompt_encoder.no_mask_embed.weight

    def __str__(self) -> str:
        precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
        dtype = self._weight.dtype
        return f"torch, {precision.get(dtype, dtype)}, on {self.device}"

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        masks, scores = self.all_masks(picture, prompts)
        return self.module.mask_decoder.select(masks, scores, multimask_output)

    def all_masks(self, picture: EmbeddedPicture, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """All four masks of each prompt: logits [B, 4, 4h, 4w] and predicted IoUs [B, 4]."""
        if not len(prompts):
            self._check(picture)
            return no_masks(picture, self.num_masks, self.device)
        masks, scores = self._ask(self.module, picture, prompts)
        return masks.float(), scores.float()

    def masks_above(
        self, picture: EmbeddedPicture, prompts: Prompts, least_iou: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``decoders.protocol.masks_above``: those that do not pass are never drawn."""
        if not len(prompts) or not self._is_as_made:
            return drawn_above(self, picture, prompts, least_iou)
        work = partial(self.module.masks_above, least_iou)
        masks, indices, scores = self._ask(work, picture, prompts)
        return masks.float(), indices, scores.float()

    @property
    def _is_as_made(self) -> bool:
        """Whether no subclass decodes in another way."""
        own = (
            (self, TorchDecoder, ("__call__", "all_masks")),
            (self.module, PromptedMaskDecoder, ("forward", "decode")),
            (self.module.mask_decoder, MaskDecoder, ("predict_masks",)),
        )
        return all(
            getattr(type(each), name) is getattr(kind, name)
            for each, kind, names in own
            for name in names
        )

    def _check(self, picture: EmbeddedPicture) -> None:
        check_fits(self, picture.img_size, False)
        check_channels(picture, self.module.mask_decoder.embedding_chans)

    def _ask(
        self, module: Callable[..., tuple[Tensor, ...]], picture: EmbeddedPicture, prompts: Prompts
    ) -> tuple[Tensor, ...]:
        self._check(picture)
        device, dtype = self.device, self._weight.dtype
        with as_written():
            prompts = prompts.to(device)
            mask = prompts.mask_input
            return module(
                picture.features.to(device, dtype),
                prompts.coords,
                prompts.labels,
                None if mask is None else mask.to(dtype),
            )

"""A mask decoder and a prompt encoder of somebody else's, called as Meta's are."""

from typing import Any

import torch
from torch import Tensor, nn

from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import check_fits, no_masks
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError


class ModuleDecoder:
    """Modules with the signatures of Meta's, on their own device; a ``Decoder``.

    Their code is not ours: it runs under the caller's torch settings, without gradients.

    Args:
        prompt_encoder, mask_decoder: used, not copied.
        img_size: side of the model's frame, in pixels.
    """

    num_masks = 4
    parameters_sha256 = ""

    def __init__(
        self, prompt_encoder: nn.Module, mask_decoder: nn.Module, img_size: int, note: str = ""
    ) -> None:
        self._prompt_encoder: Any = prompt_encoder
        self._mask_decoder = mask_decoder
        self.img_size = img_size
        self.note = note

    def __str__(self) -> str:
        return f"{type(self._mask_decoder).__name__} as it is, on {self._reference.device}"

    @property
    def _reference(self) -> Tensor:
        for module in (self._mask_decoder, self._prompt_encoder):
            if (parameter := next(module.parameters(), None)) is not None:
                return parameter
        return torch.empty(0, dtype=torch.float32, device="cpu")

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        check_fits(self, picture.img_size, False)
        device, dtype = self._reference.device, self._reference.dtype
        if not len(prompts):
            return no_masks(picture, 3 if multimask_output else 1, device)
        prompts = prompts.to(device)
        points, boxes = prompts.points_and_boxes()
        mask = None if prompts.mask_input is None else prompts.mask_input.to(dtype)
        with torch.no_grad():
            sparse, dense = self._prompt_encoder(points=points, boxes=boxes, masks=mask)
            answer = self._mask_decoder(
                image_embeddings=picture.features.to(device, dtype),
                image_pe=self._prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
            )
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise InputError(
                f"{type(self._mask_decoder).__name__} does not return masks and predicted IoUs, as "
                "SAM's mask decoder does"
            )
        return answer[0].float(), answer[1].float()

"""The mask decoder in torch."""

import torch
from torch import Tensor

from samtrt.checkpoints.parameters import Parameters
from samtrt.modeling.mask_decoder import build_mask_decoder


class TorchDecoder:
    """The mask decoder in torch, fp32, on one device."""

    num_masks = 4

    def __init__(self, parameters: Parameters, device: torch.device | str = "cpu") -> None:
        config = parameters.encoder_config
        self.img_size = config.img_size
        self.parameters_sha256 = parameters.sha256
        self.note = parameters.note
        self.device = torch.device(device)
        self.module = build_mask_decoder(parameters.decoder(), config).to(self.device)

    def __str__(self) -> str:
        return f"torch, fp32, on {self.device}"

    @torch.inference_mode()
    def __call__(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        given = (image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        moved = [None if tensor is None else tensor.to(self.device).float() for tensor in given]
        masks, ious = self.module(*moved)
        return masks.to(image_embeddings.device), ious.to(image_embeddings.device)

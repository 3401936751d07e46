"""What every mask decoder is, whatever runs it."""

from typing import Protocol

from torch import Tensor


class Decoder(Protocol):
    """Prompts on an embedded picture → mask logits.

    Attributes:
        img_size: side of the model's frame, in pixels, that point coordinates refer to.
        num_masks: masks M a prompt: 4 (see ``mask_decoder.select_masks``), or 1 for an ONNX file
            that was exported with ``--return-single-mask``.
        parameters_sha256: the parameter set; empty where the file does not say.
        note: what a user must know of the parameters (``Parameters.note``).
    """

    img_size: int
    num_masks: int
    parameters_sha256: str
    note: str

    def __call__(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decodes B prompts on one picture.

        Args:
            image_embeddings: [1, 256, h, w] float32.
            point_coords: [B, N, 2] (x, y) in pixels of the model's frame.
            point_labels: [B, N]: −1 padding, 0 background, 1 foreground, 2 and 3 a box's corners
                (``prompt_encoder.prompt_points`` makes both).
            mask_input: [B, 1, 4h, 4w] logits of an earlier call, or None.
            has_mask_input: [1], 0.0 to ignore ``mask_input``; None counts it when it is there.

        Returns:
            Logits [B, M, 4h, 4w] and predicted IoUs [B, M] float32, on the device of
            ``image_embeddings``.
        """
        ...

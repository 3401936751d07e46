"""``SamPredictor`` under the name and with the returns that the fast path had on its own."""

import numpy as np
import torch

from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam

_PRECISIONS = {None: "auto", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class Pipeline:
    """A picture and one prompt in, masks and scores out; ``SamPredictor`` does the work.

    Args:
        sam: the model.
        dtype: of the mask decoder; by default float16 on a GPU and float32 on the CPU.
    """

    def __init__(self, sam: Sam, dtype: torch.dtype | None = None) -> None:
        self.predictor = SamPredictor(sam, decoder_precision=_PRECISIONS.get(dtype, str(dtype)))

    def set_image(self, image: np.ndarray) -> None:
        """Encodes a picture [H, W, 3] uint8 RGB."""
        self.predictor.set_image(image)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masks [C, H, W] bool and predicted IoUs [C]; see ``SamPredictor.predict``."""
        masks, scores, _ = self.predictor.predict(
            point_coords, point_labels, box, multimask_output=multimask_output
        )
        return masks, scores

    def __call__(
        self,
        image: np.ndarray,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``set_image``, then ``predict``."""
        self.set_image(image)
        return self.predict(point_coords, point_labels, box, multimask_output)

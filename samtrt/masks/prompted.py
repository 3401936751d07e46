"""Masks of prompts that are known beforehand, such as a detector's boxes: one a prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from samtrt.decoders.prompts import Prompt, Prompts
from samtrt.decoders.upscaling import cut_out_with_stability, masks_at_once
from samtrt.encoders.embedded import EmbeddedPicture, check_picture
from samtrt.errors import InputError
from samtrt.masks.automatic import Progress, unseen
from samtrt.masks.geometry import mask_boxes
from samtrt.masks.predictor import SamPredictor
from samtrt.masks.runs import MaskRuns, area_from_rle, coco_encode_rle, require_pycocotools
from samtrt.sam import Sam

_STABILITY_OFFSET = 1.0  # logits, as the automatic generator's


class SamPromptedMaskGenerator:
    """Makes one mask for each prompt on a picture; masks and scores are ``SamPredictor``'s.

    Args:
        model: the model.
        prompts_per_batch: prompts decoded at once, where they have as many points.
        multimask_output: three masks a prompt (whole, part, subpart), of which the one with the
            best predicted IoU is kept; otherwise one, as ``SamPredictor.predict`` has it.
        decoder_precision: see ``SamPredictor``.

    Raises:
        InputError: arguments out of range.
        SamtrtError: pycocotools is not installed.
    """

    def __init__(
        self,
        model: Sam,
        prompts_per_batch: int = 64,
        multimask_output: bool = False,
        decoder_precision: str = "auto",
    ) -> None:
        if prompts_per_batch < 1:
            raise InputError(f"prompts_per_batch is {prompts_per_batch}, expected 1 or more")
        require_pycocotools()
        self.predictor = SamPredictor(model, decoder_precision=decoder_precision)
        self.prompts_per_batch = prompts_per_batch
        self.multimask_output = multimask_output

    @torch.no_grad()
    def generate(
        self, image: np.ndarray, prompts: Sequence[Prompt], progress: Progress = unseen
    ) -> list[dict[str, Any]]:
        """The masks of a picture's prompts; without prompts it is not encoded.

        Args:
            image: [H, W, 3] uint8 RGB.
            prompts: in pixels of the picture; a box is cut to it.
            progress: called after each batch.

        Returns:
            A record for each prompt, in their order: ``segmentation`` (COCO's compressed RLE),
            ``area`` in pixels, ``bbox`` [x, y, w, h] as the automatic generator's,
            ``predicted_iou``, ``stability_score``; ``point_coords`` [[x, y], …] with
            ``point_labels`` where it has points, and ``prompt_box`` [x, y, w, h] where it has a
            box, as it was asked.

        Raises:
            InputError: not a uint8 picture, or a prompt outside it.
        """
        check_picture(image)
        checked = inside(prompts, (image.shape[0], image.shape[1]))
        if not checked:
            return []
        return self._generate(self.predictor.model.embed(image), checked, progress)

    @torch.no_grad()
    def generate_embedded(
        self, picture: EmbeddedPicture, prompts: Sequence[Prompt], progress: Progress = unseen
    ) -> list[dict[str, Any]]:
        """``generate`` for a picture that was embedded before."""
        checked = inside(prompts, picture.original_size)
        return self._generate(picture.to(self.predictor.device), checked, progress)

    def _generate(
        self, picture: EmbeddedPicture, prompts: list[Prompt], progress: Progress
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{}] * len(prompts)
        done = 0
        mapped = [prompt.to_model_frame(picture) for prompt in prompts]
        for numbers, alike in Prompts.batches(mapped):
            waiting = iter(numbers)
            for part in alike.split(self.prompts_per_batch):
                for record in self._decode(picture, part):
                    number = next(waiting)
                    found[number] = {**record, **asked_as(prompts[number])}
                done += len(part)
                progress(done, len(prompts))
        return found

    def _decode(self, picture: EmbeddedPicture, prompts: Prompts) -> list[dict[str, Any]]:
        low_res, scores = self.predictor.decoder(picture, prompts, self.multimask_output)
        best = scores.argmax(dim=1)  # of three, or of the one
        rows = torch.arange(len(scores), device=scores.device)
        low_res, scores = low_res[rows, best], scores[rows, best]
        threshold = self.predictor.model.mask_threshold
        records: list[dict[str, Any]] = []
        for part in rows.split(masks_at_once(scores.device, picture)):
            masks, stability = cut_out_with_stability(
                low_res[part], picture, threshold, _STABILITY_OFFSET
            )
            boxes = mask_boxes(masks)
            for rle, (x0, y0, x1, y1), score, stable in zip(
                MaskRuns.from_masks(masks).to_coco(),
                boxes.tolist(),
                scores[part].tolist(),
                stability.tolist(),
                strict=True,
            ):
                records.append(
                    {
                        "segmentation": coco_encode_rle(rle),
                        "area": area_from_rle(rle),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "predicted_iou": score,
                        "stability_score": stable,
                    }
                )
        return records


def inside(prompts: Sequence[Prompt], size: tuple[int, int]) -> list[Prompt]:
    """The prompts, boxes cut to the picture; one that cannot be is named by its number."""
    checked = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            found = prompt.cut_to(size)
            found.check_inside(size)
        except InputError as error:
            raise InputError(f"prompt {number} of {len(prompts)}: {error}") from error
        checked.append(found)
    return checked


def asked_as(prompt: Prompt) -> dict[str, Any]:
    """A prompt as an annotation has it."""
    asked: dict[str, Any] = {}
    if prompt.point_coords:
        asked["point_coords"] = [list(point) for point in prompt.point_coords]
        asked["point_labels"] = list(prompt.point_labels)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        asked["prompt_box"] = [x0, y0, x1 - x0, y1 - y0]
    return asked

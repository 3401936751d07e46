"""The masks that an automatic generator keeps: those that have passed its filters so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samtrt.masks.geometry import nms
from samtrt.masks.runs import MaskRuns, area_from_rle, coco_encode_rle
from samtrt.pictures.transforms import Size

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")

_TENSORS = ("boxes", "scores", "stability", "points", "crops")


@dataclass
class KeptMasks:
    """N masks and what is known of each, in the picture's frame, on one device.

    Attributes:
        runs: the masks.
        boxes: int64 [N, 4] XYXY.
        scores: float32 [N] predicted IoUs.
        stability: float32 [N].
        points: float64 [N, 2], each mask's prompt.
        crops: int64 [N, 4], the crop each was found in.
    """

    runs: MaskRuns
    boxes: Tensor
    scores: Tensor
    stability: Tensor
    points: Tensor
    crops: Tensor

    @classmethod
    def none(cls, size: Size, device: torch.device) -> "KeptMasks":
        """No masks of a picture (H, W)."""
        scores = torch.zeros(0, dtype=torch.float32, device=device)
        boxes = torch.zeros(0, 4, dtype=torch.int64, device=device)
        points = torch.zeros(0, 2, dtype=torch.float64, device=device)
        return cls(MaskRuns.empty(size, device), boxes, scores, scores, points, boxes)

    @classmethod
    def concatenate(cls, parts: "Sequence[KeptMasks]") -> "KeptMasks":
        """All masks of at least one part."""
        return cls(
            MaskRuns.concatenate([part.runs for part in parts]),
            *(torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS),
        )

    def __len__(self) -> int:
        return len(self.runs)

    def select(self, indices: Tensor) -> "KeptMasks":
        """Those of indices int64 [n], in that order."""
        return KeptMasks(
            self.runs.select(indices),
            *(getattr(self, name)[indices] for name in _TENSORS),
        )

    def without_duplicates(self, preference: Tensor, limit: float) -> "KeptMasks":
        """Of masks whose boxes have an IoU above the limit, the one with the largest preference.

        Args:
            preference: float [N].
        """
        return self.select(nms(self.boxes.float(), preference, limit))

    def records(self, output_mode: str) -> list[dict[str, Any]]:
        """What ``SamAutomaticMaskGenerator.generate`` returns of each.

        Args:
            output_mode: one of ``OUTPUT_MODES``.
        """
        rles = self.runs.to_coco()
        segmentations: list[Any] = rles
        if output_mode == "binary_mask":
            segmentations = self.runs.to_arrays()
        elif output_mode == "coco_rle":
            segmentations = [coco_encode_rle(rle) for rle in rles]
        columns = zip(
            segmentations,
            rles,
            _xywh(self.boxes).tolist(),
            self.scores.tolist(),
            self.points.tolist(),
            self.stability.tolist(),
            _xywh(self.crops).tolist(),
            strict=True,
        )
        return [
            {
                "segmentation": segmentation,
                "area": area_from_rle(rle),
                "bbox": box,
                "predicted_iou": score,
                "point_coords": [point],
                "stability_score": stability,
                "crop_box": crop,
            }
            for segmentation, rle, box, score, point, stability, crop in columns
        ]


def _xywh(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)

"""The steps of an automatic generator, one method each, with Meta's names, arguments and columns.

A subclass overrides what it wants otherwise, and the generator then goes this way. Where none is
overridden it goes its own, which gives the same masks and looks at fewer of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.decoders.upscaling import stability_scores
from samtrt.masks.geometry import (
    box_areas,
    crop_boxes,
    is_box_near_crop_edge,
    mask_boxes,
    nms,
    remove_small_regions,
    uncrop_boxes_xyxy,
    uncrop_masks,
    uncrop_points,
)
from samtrt.masks.mask_data import MaskData
from samtrt.masks.predictor import SamPredictor
from samtrt.masks.runs import MaskRuns, area_from_rle, coco_encode_rle, rle_to_mask

STEPS = ("_generate_masks", "_process_crop", "_process_batch", "postprocess_small_regions")


def without_small_regions(
    rles: Sequence[dict[str, Any]], min_area: int, before_each: Callable[[], None] = lambda: None
) -> tuple[list[MaskRuns], Tensor, list[float]]:
    """Masks with their small holes filled and their small islands removed.

    Args:
        rles: COCO's uncompressed RLE of each mask, at least one.
        min_area: pixels of the smallest hole or island that stays.
        before_each: called before each mask; what it raises ends the work.

    Returns:
        Each mask by itself, their boxes int64 [N, 4] XYXY on the CPU, and 1.0 for each that needed
        no repair, 0.0 for the others.
    """
    masks, boxes, unchanged = [], [], []
    for rle in rles:
        before_each()
        mask, holes_filled = remove_small_regions(rle_to_mask(rle), min_area, "holes")
        mask, islands_removed = remove_small_regions(mask, min_area, "islands")
        batch = torch.from_numpy(np.ascontiguousarray(mask))[None]
        masks.append(MaskRuns.from_masks(batch))
        boxes.append(mask_boxes(batch))
        unchanged.append(float(not (holes_filled or islands_removed)))
    return masks, torch.cat(boxes), unchanged


class GeneratorSteps:
    """What ``SamAutomaticMaskGenerator`` inherits for its subclasses."""

    predictor: SamPredictor
    point_grids: list[np.ndarray]
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    min_mask_region_area: int
    output_mode: str

    @property
    def overridden_step(self) -> str | None:
        """The name of a step that is not this class's own."""
        for name in STEPS:
            own = GeneratorSteps.__dict__[name]
            own = own.__func__ if isinstance(own, staticmethod) else own
            found = getattr(self, name)
            if getattr(found, "__func__", found) is not own:
                return name
        return None

    def _generate_masks(self, image: np.ndarray) -> MaskData:
        """The masks of a picture [H, W, 3], of all crops.

        Returns:
            Columns in host memory: ``rles``, ``boxes`` XYXY, ``iou_preds``, ``points``,
            ``stability_score``, ``crop_boxes`` XYXY.
        """
        height, width = image.shape[:2]
        boxes, layers = crop_boxes((height, width), self.crop_n_layers, self.crop_overlap_ratio)
        data = MaskData()
        for box, layer in zip(boxes, layers, strict=True):
            if box[0] < box[2] and box[1] < box[3]:  # fewer pixels than the layer has crops
                data.cat(self._process_crop(image, box, layer, (height, width)))
        if len(boxes) > 1:  # duplicates between crops: the smaller crop saw more detail
            found = data["boxes"].float()
            preference = 1 / box_areas(data["crop_boxes"]).float().to(found.device)
            data.filter(nms(found, preference, self.crop_nms_thresh))
        data.to_numpy()
        return data

    def _process_crop(
        self,
        image: np.ndarray,
        crop_box: list[int],
        crop_layer_idx: int,
        orig_size: tuple[int, ...],
    ) -> MaskData:
        """The masks of one crop (x0, y0, x1, y1), in the frame of the picture of ``orig_size``."""
        x0, y0, x1, y1 = crop_box
        crop = image[y0:y1, x0:x1]
        size = crop.shape[:2]
        self.predictor.set_image(crop)
        points = self.point_grids[crop_layer_idx] * np.array(size)[None, ::-1]
        data = MaskData()
        for start in range(0, len(points), self.points_per_batch):
            batch = points[start : start + self.points_per_batch]
            data.cat(self._process_batch(batch, size, crop_box, orig_size))
        self.predictor.reset_image()
        data.filter(nms(data["boxes"].float(), data["iou_preds"], self.box_nms_thresh))
        data["boxes"] = uncrop_boxes_xyxy(data["boxes"], crop_box)
        data["points"] = uncrop_points(data["points"], crop_box)
        data["crop_boxes"] = torch.tensor(crop_box, device="cpu").expand(len(data["rles"]), 4)
        return data

    def _process_batch(
        self,
        points: np.ndarray,
        im_size: tuple[int, ...],
        crop_box: list[int],
        orig_size: tuple[int, ...],
    ) -> MaskData:
        """The masks of points [N, 2] on the crop that is set, those that pass the filters.

        Args:
            points: in pixels of the crop.
            im_size: (H, W) of the crop.
            crop_box: of the crop, XYXY.
            orig_size: (H, W) of the picture.

        Returns:
            Columns ``rles`` in the picture's frame, ``boxes`` and ``points`` in the crop's,
            ``iou_preds``, ``stability_score``.
        """
        height, width = orig_size
        coords = self.predictor.transform.apply_coords(points, im_size)
        prompts = torch.from_numpy(coords).to(self.predictor.device)
        labels = torch.ones(len(prompts), dtype=torch.int, device=prompts.device)
        masks, scores, _ = self.predictor.predict_torch(
            prompts[:, None], labels[:, None], multimask_output=True, return_logits=True
        )
        data = MaskData(
            masks=masks.flatten(0, 1),
            iou_preds=scores.flatten(0, 1),
            points=torch.from_numpy(points.repeat(masks.shape[1], axis=0)),
        )
        if self.pred_iou_thresh > 0:
            data.filter(data["iou_preds"] > self.pred_iou_thresh)
        threshold = self.predictor.model.mask_threshold
        data["stability_score"] = stability_scores(
            data["masks"], threshold, self.stability_score_offset
        )
        if self.stability_score_thresh > 0:
            data.filter(data["stability_score"] >= self.stability_score_thresh)
        data["masks"] = data["masks"] > threshold
        data["boxes"] = mask_boxes(data["masks"])
        near = is_box_near_crop_edge(data["boxes"], crop_box, [0, 0, width, height])
        data.filter(~near)
        whole = uncrop_masks(data["masks"], crop_box, height, width)
        data["rles"] = MaskRuns.from_masks(whole).to_coco()
        del data["masks"]
        return data

    @staticmethod
    def postprocess_small_regions(
        mask_data: MaskData, min_area: int, nms_thresh: float
    ) -> MaskData:
        """Fills small holes, removes small islands, then drops what has become a duplicate.

        Args:
            mask_data: ``_generate_masks``'s; changed.
            min_area: pixels of the smallest hole or island that stays.
            nms_thresh: box IoU above which the worse of two masks is a duplicate.
        """
        if not len(mask_data["rles"]):
            return mask_data
        masks, found, unchanged = without_small_regions(mask_data["rles"], min_area)
        preference = torch.tensor(unchanged, dtype=torch.float32, device="cpu")
        kept = nms(found.float(), preference, nms_thresh)
        for index in kept.tolist():
            if not unchanged[index]:
                mask_data["rles"][index] = masks[index].to_coco()[0]
                box: Tensor = found[index]
                as_column = isinstance(mask_data["boxes"], Tensor)
                mask_data["boxes"][index] = box if as_column else box.numpy()
        mask_data.filter(kept)
        return mask_data

    def _by_steps(self, image: np.ndarray) -> list[dict[str, Any]]:
        """``generate``, step by step."""
        data = self._generate_masks(image)
        if self.min_mask_region_area > 0:
            limit = max(self.box_nms_thresh, self.crop_nms_thresh)
            data = self.postprocess_small_regions(data, self.min_mask_region_area, limit)
        segmentation = {
            "coco_rle": coco_encode_rle,
            "binary_mask": rle_to_mask,
            "uncompressed_rle": lambda rle: rle,
        }[self.output_mode]
        columns = (data[name] for name in (
            "rles", "boxes", "iou_preds", "points", "stability_score", "crop_boxes"
        ))  # fmt: skip
        return [
            {
                "segmentation": segmentation(rle),
                "area": area_from_rle(rle),
                "bbox": _xywh(box),
                "predicted_iou": float(score),
                "point_coords": [list(map(float, point))],
                "stability_score": float(stability),
                "crop_box": _xywh(crop),
            }
            for rle, box, score, point, stability, crop in zip(*columns, strict=True)
        ]


def _xywh(box: Any) -> list[Any]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]

"""Masks of everything in a picture: a grid of points, filters, and no duplicates.

Arguments, defaults and records are those of ``segment_anything/automatic_mask_generator.py``.
What differs is the order of the work: predicted IoUs are looked at before a mask is upscaled, so
that only those that pass are; masks become runs on their device; only final ones become records.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import Decoder, masks_above
from samtrt.decoders.upscaling import cut_out_with_stability, masks_at_once
from samtrt.encoders.embedded import EmbeddedPicture, check_picture
from samtrt.errors import InputError
from samtrt.masks.geometry import (
    box_areas,
    check_at_least,
    checked_point_grids,
    crop_boxes,
    is_box_near_crop_edge,
    is_number,
    mask_boxes,
    take_masks,
    uncrop_masks,
)
from samtrt.masks.kept import OUTPUT_MODES, KeptMasks
from samtrt.masks.predictor import SamPredictor
from samtrt.masks.runs import MaskRuns, require_pycocotools
from samtrt.masks.steps import GeneratorSteps, without_small_regions
from samtrt.pictures.transforms import Size
from samtrt.sam import Sam

_MAX_CROP_LAYERS = 8
_RECORDS_AT_ONCE = 64


@dataclass(frozen=True)
class _Crop:
    """A crop of the picture, embedded.

    Attributes:
        box: XYXY in the picture.
        embedded: the crop.
        picture_size: (H, W) of the picture.
        on_device: int64 [4], the box beside the embedding: the host waits for each number that it
            sends to a GPU.
    """

    box: list[int]
    embedded: EmbeddedPicture
    picture_size: Size
    on_device: Tensor


# Called now and then with how many masks the crop at work holds, and their run lengths' bytes; what
# it raises ends the work.
Check = Callable[[int, int], None]


# Called after each batch of points with the points done, those in all, and the records of the masks
# that it added. Among those of several batches are duplicates, which only the end can drop.
Found = Callable[[int, int, list[dict[str, Any]]], None]


# Called after each batch with the points or prompts done, and all of them: of points, those in the
# grids of all crops.
Progress = Callable[[int, int], None]

# Called after each batch of a crop's points with how many it has, and with its masks.
_Batch = Callable[[int, list[KeptMasks]], None]


def _unwatched(masks: int, nbytes: int) -> None:
    """The check of work that nobody stops."""


def unseen(done: int, total: int) -> None:
    """The progress of work that nobody looks at."""


class SamAutomaticMaskGenerator(GeneratorSteps):
    """Generates masks for a whole picture.

    Subclasses may override ``_generate_masks``, ``_process_crop``, ``_process_batch`` and
    ``postprocess_small_regions``, which then are called as Meta's (``masks/steps.py``).

    Args:
        model: the model.
        points_per_side: points along one side of the grid; None if ``point_grids`` is given.
        points_per_batch: points decoded at once.
        pred_iou_thresh: masks whose predicted IoU is not above it are dropped.
        stability_score_thresh: masks whose stability score is below it are dropped.
        stability_score_offset: logits above and below the threshold at which stability is read.
        box_nms_thresh: box IoU above which the worse of two masks of a crop is a duplicate.
        crop_n_layers: layers of crops that are searched as well; layer n has 2ⁿ × 2ⁿ.
        crop_nms_thresh: as ``box_nms_thresh``, between crops.
        crop_overlap_ratio: how far the crops of the first layer overlap, as a fraction of the
            picture's short side; halved with each layer.
        crop_n_points_downscale_factor: layer n has points_per_side / this**n points a side.
        point_grids: explicit grids [N, 2] in the unit square, one for each layer.
        min_mask_region_area: islands and holes of fewer pixels are removed; 0 for none.
        output_mode: ``"binary_mask"``, ``"uncompressed_rle"`` or ``"coco_rle"`` (pycocotools).
        decoder, decoder_precision: see ``SamPredictor``.

    Raises:
        InputError: arguments out of range or that contradict each other.
        SamtrtError: ``coco_rle`` without pycocotools.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        decoder: Decoder | None = None,
        decoder_precision: str = "auto",
    ) -> None:
        check_at_least("points_per_batch", points_per_batch, 1)
        check_at_least("crop_n_layers", crop_n_layers, 0)
        check_at_least("min_mask_region_area", min_mask_region_area, 0)
        if crop_n_layers > _MAX_CROP_LAYERS:
            raise InputError(
                f"crop_n_layers is {crop_n_layers}, expected at most {_MAX_CROP_LAYERS}: layer n "
                "has 2ⁿ × 2ⁿ crops"
            )
        for name, value in (
            ("pred_iou_thresh", pred_iou_thresh),
            ("stability_score_thresh", stability_score_thresh),
            ("stability_score_offset", stability_score_offset),
            ("box_nms_thresh", box_nms_thresh),
            ("crop_nms_thresh", crop_nms_thresh),
            ("crop_overlap_ratio", crop_overlap_ratio),
        ):
            if not is_number(value):
                raise InputError(f"{name} is {value!r}, expected a finite number")
        if not 0 <= crop_overlap_ratio < 1:
            raise InputError(
                f"crop_overlap_ratio is {crop_overlap_ratio}, expected 0 or more and less than 1"
            )
        point_grids = checked_point_grids(
            points_per_side, crop_n_layers, crop_n_points_downscale_factor, point_grids
        )
        if output_mode not in OUTPUT_MODES:
            raise InputError(
                f"unknown output_mode {output_mode!r}, expected one of {', '.join(OUTPUT_MODES)}"
            )
        if output_mode == "coco_rle":
            require_pycocotools()
        self.point_grids = point_grids
        self.predictor = SamPredictor(model, decoder, decoder_precision)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    @torch.no_grad()
    def generate(
        self, image: np.ndarray, check: Check = _unwatched, progress: Progress = unseen
    ) -> list[dict[str, Any]]:
        """The masks of a picture.

        Args:
            image: [H, W, 3] uint8 RGB.
            check: called before each few masks with how many the crop at work holds so far, and
                the bytes of their run lengths; what it raises ends the work.
            progress: called after each batch of points with how many are done, and with how many
                the grids of all crops have.

        Returns:
            A record for each mask: ``segmentation`` (bool [H, W], or an RLE dict), ``area`` in
            pixels, ``bbox`` [x, y, w, h], ``predicted_iou``, ``point_coords`` [[x, y]],
            ``stability_score``, and ``crop_box`` [x, y, w, h]; boxes and points in pixels.

        Raises:
            InputError: not a uint8 picture.
        """
        check_picture(image)
        if self.overridden_step is not None:
            check(0, 0)
            return self._by_steps(image)
        height, width = image.shape[:2]
        boxes, layers = crop_boxes((height, width), self.crop_n_layers, self.crop_overlap_ratio)
        # Without those of a picture with fewer pixels than the layer has crops.
        crops = [
            (box, layer)
            for box, layer in zip(boxes, layers, strict=True)
            if box[0] < box[2] and box[1] < box[3]
        ]
        done, total = 0, sum(len(self.point_grids[layer]) for _, layer in crops)

        def advance(points: int, masks: list[KeptMasks]) -> None:
            nonlocal done
            done += points
            progress(done, total)

        parts = []
        for box, layer in crops:
            x0, y0, x1, y1 = box
            check(0, 0)
            embedded = self.predictor.model.embed(image[y0:y1, x0:x1])
            crop = self._crop(box, embedded, (height, width))
            parts.append(self._one_crop(crop, layer, check, advance))
        return self._finish(parts, check)

    @torch.no_grad()
    def generate_embedded(
        self,
        picture: EmbeddedPicture,
        check: Check = _unwatched,
        found: Found | None = None,
        progress: Progress = unseen,
    ) -> list[dict[str, Any]]:
        """``generate`` for a picture that was embedded before; its pixels are not needed.

        Args:
            picture: the picture.
            check: as of ``generate``.
            found: called after each batch with how many points are done, how many there are, and
                the records of the masks that the batch found; they may turn out to be duplicates.
            progress: as of ``generate``.

        Raises:
            InputError: the generator searches crops, which have to be embedded, or a subclass
                has steps of its own.
        """
        if self.overridden_step is not None:
            raise InputError(
                f"{type(self).__name__} has a {self.overridden_step} of its own, which takes the "
                "picture's pixels, and an embedded picture has none; call generate"
            )
        if self.crop_n_layers:
            raise InputError(
                f"{self.crop_n_layers} crop layers need the picture's pixels, and an embedded "
                "picture has none; call generate, or take crop_n_layers=0"
            )
        height, width = picture.original_size
        picture = picture.to(self.predictor.device)
        crop = self._crop([0, 0, width, height], picture, (height, width))
        done, total = 0, len(self.point_grids[0])

        def advance(points: int, masks: list[KeptMasks]) -> None:
            nonlocal done
            done += points
            progress(done, total)
            if found is not None:
                found(done, total, self._without_duplicates(masks, crop).records(self.output_mode))

        return self._finish([self._one_crop(crop, 0, check, advance)], check)

    def _crop(self, box: list[int], embedded: EmbeddedPicture, picture_size: Size) -> _Crop:
        on_device = torch.tensor(box, dtype=torch.int64, device=embedded.features.device)
        return _Crop(box, embedded, picture_size, on_device)

    def _finish(self, parts: list[KeptMasks], check: Check) -> list[dict[str, Any]]:
        """Records of the masks of all crops."""
        masks = KeptMasks.concatenate(parts)
        if len(parts) > 1:  # duplicates between crops: the smaller crop saw more detail
            preference = 1 / box_areas(masks.crops).float()
            masks = masks.without_duplicates(preference, self.crop_nms_thresh)
        if self.min_mask_region_area > 0 and len(masks):
            masks = self._without_small_regions(masks, check)
        return self._records(masks, check)

    def _one_crop(self, crop: _Crop, layer: int, check: Check, advance: _Batch) -> KeptMasks:
        height, width = crop.embedded.original_size
        points = self.point_grids[layer] * np.array([width, height])
        on_device = torch.from_numpy(points).to(crop.on_device.device)
        parts: list[KeptMasks] = []
        for start in range(0, len(points), self.points_per_batch):
            few, before = slice(start, start + self.points_per_batch), len(parts)
            self._one_batch(points[few], on_device[few], crop, parts, check)
            advance(len(points[few]), parts[before:])
        return self._without_duplicates(parts, crop)

    def _without_duplicates(self, parts: list[KeptMasks], crop: _Crop) -> KeptMasks:
        if not parts:
            return KeptMasks.none(crop.picture_size, self.predictor.device)
        masks = KeptMasks.concatenate(parts)
        return masks.without_duplicates(masks.scores, self.box_nms_thresh)

    def _one_batch(
        self,
        points: np.ndarray,
        on_device: Tensor,
        crop: _Crop,
        parts: list[KeptMasks],
        check: Check,
    ) -> None:
        """Adds to ``parts`` the masks of points (in the crop's frame; and the same beside the
        embedding) that pass all filters."""
        check(*_held(parts))
        low_res, chosen, scores = self._decode(points, crop.embedded)
        masks_a_point = scores.shape[1]
        scores = scores.flatten()
        # (Nothing is sent, unless a decoder of the caller's computes elsewhere.)
        prompts, crop_box = on_device.to(scores.device), crop.on_device.to(scores.device)
        corner = crop_box[:2]
        at_once = masks_at_once(scores.device, crop.embedded)
        for few, which in zip(low_res.split(at_once), chosen.split(at_once), strict=True):
            if not len(which):
                continue
            check(*_held(parts))
            runs, boxes, stability, kept = self._cut_out(few, crop)
            which = which[kept]
            parts.append(
                KeptMasks(
                    runs,
                    boxes + corner.repeat(2),
                    scores[which],
                    stability,
                    prompts[which // masks_a_point] + corner,
                    crop_box.expand(len(which), 4),
                )
            )

    def _decode(
        self, points: np.ndarray, picture: EmbeddedPicture
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The masks of foreground points [n, 2] whose predicted IoU is above the threshold.

        Returns:
            Logits [K, S/4, S/4], their indices [K] among the n · M masks, and all IoUs [n, M].
        """
        transform = self.predictor.transform
        coords = torch.from_numpy(transform.apply_coords(points, picture.original_size))
        labels = torch.ones(len(points), 1, dtype=torch.float32, device="cpu")
        prompts = Prompts.from_tensors(picture, coords[:, None], labels)
        decoder = self.predictor.decoder
        if self.pred_iou_thresh > 0:
            return masks_above(decoder, picture, prompts, self.pred_iou_thresh)
        masks, scores = decoder(picture, prompts, True)
        return masks.flatten(0, 1), torch.arange(scores.numel(), device=scores.device), scores

    def _cut_out(self, low_res: Tensor, crop: _Crop) -> tuple[MaskRuns, Tensor, Tensor, Tensor]:
        """Upscales logits [n, S/4, S/4] and filters the masks.

        Returns:
            runs in the picture's frame, boxes [m, 4] in the crop's, stability scores [m], and the
            indices [m] of the masks that passed.
        """
        threshold = self.predictor.model.mask_threshold
        masks, stability = cut_out_with_stability(
            low_res, crop.embedded, threshold, self.stability_score_offset
        )
        kept = torch.arange(len(masks), device=masks.device)
        if self.stability_score_thresh > 0:
            kept = (stability >= self.stability_score_thresh).nonzero()[:, 0]
            masks = take_masks(masks, kept)
        boxes = mask_boxes(masks)
        height, width = crop.picture_size
        picture_box = [0, 0, width, height]
        if crop.box != picture_box:  # which has no border of its own
            inside = (~is_box_near_crop_edge(boxes, crop.box, picture_box)).nonzero()[:, 0]
            if len(inside) < len(kept):
                masks, boxes, kept = take_masks(masks, inside), boxes[inside], kept[inside]
        masks = uncrop_masks(masks, crop.box, height, width)
        return MaskRuns.from_masks(masks), boxes, stability[kept], kept

    def _without_small_regions(self, masks: KeptMasks, check: Check) -> KeptMasks:
        """Fills small holes, removes small islands, then drops what has become a duplicate."""
        runs, boxes, unchanged = without_small_regions(
            masks.runs.to_coco(), self.min_mask_region_area, lambda: check(*_held([masks]))
        )
        device = masks.boxes.device
        masks.runs = MaskRuns.concatenate(runs).to(device)
        masks.boxes = boxes.to(device)
        # Masks that needed no repair are preferred.
        preference = torch.tensor(unchanged, dtype=torch.float32, device=device)
        limit_iou = max(self.box_nms_thresh, self.crop_nms_thresh)
        return masks.without_duplicates(preference, limit_iou)

    def _records(self, masks: KeptMasks, check: Check) -> list[dict[str, Any]]:
        records = []
        # A few at a time: as lists of Python's numbers, runs take five times their bytes.
        for few in torch.arange(len(masks), device=masks.boxes.device).split(_RECORDS_AT_ONCE):
            check(*_held([masks]))
            records += masks.select(few).records(self.output_mode)
        return records


def _held(parts: list[KeptMasks]) -> tuple[int, int]:
    """Masks, and the bytes of their run lengths."""
    return sum(map(len, parts)), sum(part.runs.nbytes for part in parts)

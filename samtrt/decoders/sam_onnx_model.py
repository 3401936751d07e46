"""The mask decoder in the contract of Meta's ``utils/onnx.py``: masks at the picture's own size.

What annotation tools load as a SAM decoder takes these inputs and gives these outputs, in this
order. The module can be exported by both of torch's exporters: sizes that depend on
``orig_im_size`` stay dynamic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.decoders.upscaling import stability_scores
from samtrt.pictures.transforms import MASK_THRESHOLD

_Size = tuple[Any, Any]  # ints, or what an exporter traces in their place


class SamOnnxModel(nn.Module):
    """Prompts of one picture and its size → masks, predicted IoUs, low resolution logits.

    Args:
        model: has ``prompt_encoder`` and ``mask_decoder``, as ``Sam``.
        return_single_mask: one mask, chosen as ``select_masks`` says, in place of all four.
        use_stability_score: scores are the stability of the low resolution logits.
        return_extra_metrics: the stability and area of the masks as well.

    Attributes:
        img_size: side of the model's frame, in pixels.
        stability_score_offset: of the two cuts whose IoU is the stability.
    """

    def __init__(
        self,
        model: Any,
        return_single_mask: bool,
        use_stability_score: bool = False,
        return_extra_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.mask_decoder = model.mask_decoder
        self.model = model
        self.img_size: int = model.prompt_encoder.input_image_size[0]
        self.mask_threshold: float = getattr(model, "mask_threshold", MASK_THRESHOLD)
        self.return_single_mask = return_single_mask
        self.use_stability_score = use_stability_score
        self.stability_score_offset = 1.0
        self.return_extra_metrics = return_extra_metrics

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """Masks of B prompts of N points on one picture.

        Args:
            image_embeddings: [1, 256, h, w].
            point_coords: [B, N, 2] (x, y) in pixels of the model's frame.
            point_labels: [B, N]; see ``PromptEncoder.embed_points``.
            mask_input: [1, 1, 4h, 4w] or [B, 1, 4h, 4w] logits of an earlier call.
            has_mask_input: [1], 1 where ``mask_input`` counts and 0 where it does not.
            orig_im_size: [2], (height, width) of the picture.

        Returns:
            Logits [B, M, H, W] at the picture's size, scores [B, M] and logits [B, M, 4h, 4w], M
            being 4 or 1. With extra metrics the masks' stability [B, M] and area [B, M], in
            pixels, stand before the last.
        """
        masks, scores = self.mask_decoder.predict_masks(
            image_embeddings=image_embeddings,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=self._embed_points(point_coords, point_labels),
            dense_prompt_embeddings=self._embed_masks(
                mask_a_prompt(mask_input, point_labels.shape[0]), has_mask_input
            ),
        )
        if self.use_stability_score:
            scores = self._stability(masks)
        if self.return_single_mask:
            # Counted in a tensor: the exporter cannot multiply by a symbolic size.
            num_points = torch.ones_like(point_labels).sum(dim=1, keepdim=True)
            masks, scores = self.select_masks(masks, scores, num_points)
        upscaled = self.mask_postprocessing(masks, orig_im_size)
        if not self.return_extra_metrics:
            return upscaled, scores, masks
        areas = (upscaled > self.mask_threshold).flatten(-2).sum(-1)
        return upscaled, scores, self._stability(upscaled), areas, masks

    def _stability(self, logits: Tensor) -> Tensor:
        return stability_scores(logits, self.mask_threshold, self.stability_score_offset)

    def _embed_points(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        return self.model.prompt_encoder.embed_points(point_coords, point_labels)

    def _embed_masks(self, input_mask: Tensor, has_mask_input: Tensor) -> Tensor:
        encoder = self.model.prompt_encoder
        embedded = has_mask_input * encoder.embed_masks(input_mask)
        return embedded + (1 - has_mask_input) * encoder.embed_no_mask()

    def select_masks(
        self, masks: Tensor, iou_preds: Tensor, num_points: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """The mask [B, 1, …] and score [B, 1] that ``single_mask`` chooses of [B, M, …]."""
        return single_mask(masks, iou_preds, num_points)

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """Logits [B, M, 4h, 4w] → [B, M, H, W]: upscaled, cropped, upscaled."""
        side = self.img_size
        masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        # As ResizeLongestSide: a side is never shorter than a pixel.
        height, width = _sizes(self.resize_longest_image_size(orig_im_size, side).clamp(1, side))
        if not torch.jit.is_tracing():
            torch._check(height <= side)
            torch._check(width <= side)
        size = _sizes(orig_im_size.to(torch.int64))
        masks = masks[..., :height, :width]
        return F.interpolate(masks, size, mode="bilinear", align_corners=False)

    @staticmethod
    def resize_longest_image_size(input_image_size: Tensor, longest_side: int) -> Tensor:
        """The (h, w) int64 [2] that a picture of (H, W) is resized to."""
        size = input_image_size.to(torch.float32)
        return torch.floor(longest_side / size.max() * size + 0.5).to(torch.int64)


class SamHQOnnxModel(SamOnnxModel):
    """What SAM-HQ's own ``utils/onnx.py`` makes of a SAM-HQ: its early features are an input.

    Args:
        model: as ``SamOnnxModel``, with a ``MaskDecoderHQ``, whose ``hq_token_only`` counts.
        multimask_output: the best of SAM's masks 1…3 is added to the HQ token's, and not mask 0.
        return_extra_metrics: as ``SamOnnxModel``.
    """

    def __init__(
        self, model: Any, multimask_output: bool = False, return_extra_metrics: bool = False
    ) -> None:
        super().__init__(model, True, return_extra_metrics=return_extra_metrics)
        self.multimask_output = multimask_output

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        interm_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """One mask a prompt; what is not named here is as in ``SamOnnxModel.forward``.

        Args:
            interm_embeddings: [n, 1, h, w, C], outputs of the image encoder's global blocks, of
                which the first is used.
        """
        return super().forward(
            self.mask_decoder.with_early(image_embeddings, interm_embeddings),
            point_coords, point_labels, mask_input, has_mask_input, orig_im_size,
        )  # fmt: skip

    def select_masks(
        self, masks: Tensor, iou_preds: Tensor, num_points: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """As SAM-HQ's predictor chooses, whatever the number of points."""
        chosen: tuple[Tensor, Tensor] = self.mask_decoder.select(
            masks, iou_preds, self.multimask_output
        )
        return chosen


class CvatOnnxModel(SamOnnxModel):
    """What CVAT's page loads: one mask, cut out and cropped to its box, and the box.

    Args:
        model: as ``SamOnnxModel``.
        use_stability_score: as ``SamOnnxModel``.
    """

    def __init__(self, model: Any, use_stability_score: bool = False) -> None:
        super().__init__(model, True, use_stability_score)

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """The mask of one prompt; it takes what ``SamOnnxModel.forward`` takes.

        Returns:
            The mask within its box uint8 [1, 1, h, w], 255 inside and 0 outside, the score [1, 1],
            logits [1, 1, 4h, 4w], and the box's left, top, right and bottom int64 [1], the last two
            within it. An empty mask has the box of the pixel (0, 0).
        """
        upscaled, score, low_res = super().forward(
            image_embeddings, point_coords, point_labels, mask_input, has_mask_input, orig_im_size
        )
        mask = upscaled[0, 0] > self.mask_threshold
        box = [*_ends(mask.any(dim=0)), *_ends(mask.any(dim=1))]
        left, right, top, bottom = (_number(edge) for edge in box)
        for first, last, length in ((left, right, mask.shape[1]), (top, bottom, mask.shape[0])):
            torch._check(first >= 0)
            torch._check(first <= last)
            torch._check(last < length)
        cropped = mask.narrow(0, top, bottom - top + 1).narrow(1, left, right - left + 1)
        pixels = 255 * cropped.to(torch.uint8)[None, None]
        return pixels, score, low_res, *(box[edge].reshape(1) for edge in (0, 2, 1, 3))


def _ends(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last True of [n], as int64 numbers; 0 and 0 without any."""
    where = torch.arange(occupied.shape[0], device=occupied.device)
    last = (where * occupied).max()
    return torch.where(occupied, where, last).min(), last


def mask_a_prompt(mask_input: Tensor, num_prompts: int) -> Tensor:
    """``mask_input`` [B, 1, 4h, 4w], or [1, 1, 4h, 4w] for all prompts, as [B, 1, 4h, 4w]."""
    # A size of its own, and an index that picks the one mask or each prompt's: were both sizes one
    # symbol, ONNX Runtime would take a single mask for as many as there are prompts.
    prompt = torch.arange(num_prompts, device=mask_input.device)
    num_masks = torch.ones_like(mask_input[:, 0, 0, 0]).sum()
    return mask_input[prompt * (num_masks > 1)]


def single_mask(masks: Tensor, scores: Tensor, num_points: Tensor | int) -> tuple[Tensor, Tensor]:
    """Of masks [B, 4, …] and scores [B, 4] the best, as [B, 1, …] and [B, 1].

    The score of mask 0 is raised by 1000 · (N − 2.5), N being the number of points with padding and
    box corners: mask 0 for three points and more, the best of masks 1…3 otherwise. A box alone
    counts as two points, so it gets one of masks 1…3, where Meta's PyTorch predictor
    (``multimask_output=False``) always answers with mask 0.

    Args:
        num_points: N, or [B, 1].
    """
    first = torch.arange(scores.shape[1], device=scores.device) == 0
    best = (scores + 1000.0 * (num_points - 2.5) * first).argmax(dim=1)
    prompt = torch.arange(scores.shape[0], device=scores.device)
    return masks[prompt, best].unsqueeze(1), scores[prompt, best].unsqueeze(1)


def _number(value: Tensor) -> Any:
    """An int, or what an exporter has in its place, and ``int`` would make a constant."""
    return value.item()


def _sizes(size: Tensor) -> _Size:
    """A size int64 [2] as two numbers, or as what stands for them in an exported model."""
    if (
        torch.jit.is_tracing()
    ):  # the older exporter follows tensors, and takes numbers for constants
        return size[0], size[1]
    height, width = _number(size[0]), _number(size[1])
    torch._check(height >= 1)
    torch._check(width >= 1)
    return height, width

"""SAM's training objective: prompts sampled in rounds, focal + dice 20:1, and the IoU head.

Source: Segment Anything (arXiv:2304.02643), section 3 and appendix A, "Losses" and "Training
algorithm", with fewer rounds a step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.scenes.drawing import PADDING, SceneBatch
from samtrt.scenes.layout import SLOTS
from samtrt.scenes.randomness import SceneRandom
from training.model import decode, encode

FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT = 20.0, 1.0, 1.0
# SAM trains the single-mask token from the second prompt on, and three tokens on the first
# click alone. All four learn in every round here, the ones that SAM does not use at half weight:
# callers do ask for three masks of a box, or one of a click.
UNUSED_TOKEN_WEIGHT = 0.5
BOX_NOISE, BOX_NOISE_LIMIT = 0.1, 20.0  # standard deviation by side, and pixels at most
BACKGROUND_SHARE = 0.25  # of the scenes in which the background may be asked for


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """[n, M] weighted focal + dice loss of logits [n, M, h, w] to coverage [n, 1, h, w] in 0…1.

    Targets are shares of a cell, not bits: logit 0 then falls where half a cell is covered, which
    is what bilinear upscaling to the full picture wants.
    """
    logits = logits.float()
    targets = targets.float().expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    agreement = probability * targets + (1 - probability) * (1 - targets)
    alpha = 0.25 * targets + 0.75 * (1 - targets)
    focal = (alpha * (1 - agreement).square() * entropy).mean((-2, -1))
    overlap = 2 * (probability * targets).sum((-2, -1)) + 1
    dice = 1 - overlap / (probability.sum((-2, -1)) + targets.sum((-2, -1)) + 1)
    return FOCAL_WEIGHT * focal + DICE_WEIGHT * dice


def mask_ious(logits: Tensor, targets: Tensor) -> Tensor:
    """[n, M] intersection over union of thresholded logits and coverage above one half."""
    predicted, true = logits > 0, targets > 0.5
    intersection = (predicted & true).sum((-2, -1)).float()
    return intersection / (predicted | true).sum((-2, -1)).clamp_min(1)


def choose_targets(scenes: SceneBatch, count: int, random: SceneRandom) -> tuple[Tensor, Tensor]:
    """Draws ``count`` masks of each scene: coverage [B·count, 1, h, w] and weights [B·count]."""
    valid = scenes.valid.clone()
    valid[:, SLOTS] &= random.chance(BACKGROUND_SHARE, 1)[:, 0]
    score = random.lattice(SLOTS + 1) + valid
    chosen = score.topk(count, dim=1).indices
    weights = valid.gather(1, chosen).float().flatten()
    rows = torch.arange(len(valid), device=chosen.device)[:, None]
    return scenes.coverage()[rows, chosen].flatten(0, 1)[:, None].float(), weights


def sample_pixels(regions: Tensor, noise: Tensor) -> Tensor:
    """[n, 2] (x, y) in pixels of the frame: a uniform draw from each region [n, h, w] bool.

    Args:
        regions: at a quarter of the frame's resolution. An empty one gives any pixel.
        noise: [n, h·w] uniform.
    """
    index = (noise + regions.flatten(1)).argmax(1)
    width = regions.shape[-1]
    # Any of the 4 × 4 pixels of the cell, drawn from the noise's lower digits.
    inner = (noise.gather(1, index[:, None]) * 4096).long() % 16
    x = index % width * 4 + inner[:, 0] % 4
    y = index // width * 4 + inner[:, 0] // 4
    return torch.stack([x, y], dim=-1).float()


def noisy_boxes(targets: Tensor, random: SceneRandom) -> Tensor:
    """[n, 2, 2] corners (x, y) in pixels of the frame around coverage [n, 1, h, w], with noise."""
    inside = targets[:, 0] > 0.25
    columns, rows = inside.any(1).float(), inside.any(2).float()
    size = inside.shape[-1]
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = size - columns.flip(1).argmax(1), size - rows.flip(1).argmax(1)
    box = torch.stack([x0, y0, x1, y1], dim=-1) * 4.0
    side = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    draws = random.lattice(len(box) // len(random.keys), 4, 4).view(len(box), 4, 4)
    normal = (draws.sum(-1) - 2) * 3**0.5  # sum of four uniforms, variance 1/3
    # A third of the boxes are tight: that is what is asked of a detector's box.
    tight = (draws[:, :1, 0] * 64).frac() < 1 / 3
    noise = (normal * side * BOX_NOISE).clamp(-BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)
    noise = noise * (size / 256) * ~tight
    return (box + noise).clamp(0, size * 4 - 1).view(-1, 2, 2)


def _central(regions: Tensor) -> Tensor:
    """The part of each region [n, h, w] that lies deepest inside, as bool."""
    depth = F.avg_pool2d(regions[:, None].float(), 25, stride=1, padding=12)[:, 0] * regions
    return depth >= depth.amax((1, 2), keepdim=True) * 0.97


class Objective(nn.Module):
    """Pictures in, loss out.

    Args:
        sam: Meta's ``Sam``.
        masks_per_image: P.
        rounds: of prompts, from 1.
    """

    def __init__(self, sam: Any, masks_per_image: int, rounds: int) -> None:
        super().__init__()
        self.sam, self.masks_per_image, self.rounds = sam, masks_per_image, rounds
        self.encode, self.mask_losses = encode, mask_losses  # train.py may compile them

    def forward(self, scenes: SceneBatch, random: SceneRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Returns:
            The loss to minimise, and detached figures for the log.
        """
        targets, weights = choose_targets(scenes, self.masks_per_image, random)
        total = weights.sum().clamp_min(1)

        def mean(values: Tensor) -> Tensor:
            return (values * weights).sum() / total

        images = normalise(self.sam, scenes)
        embeddings = self.encode(self.sam.image_encoder, images)
        inside = targets[:, 0] > 0.5
        count, _, height, width = targets.shape

        def noise() -> Tensor:
            return random.lattice(self.masks_per_image, height * width).view(count, -1)

        use_box = random.chance(0.4, self.masks_per_image).flatten()
        middle = random.chance(0.4, self.masks_per_image).flatten()
        region = torch.where(middle[:, None, None], _central(inside), inside)
        click = sample_pixels(region, noise())
        corners = noisy_boxes(targets, random)
        first = torch.stack([click, torch.zeros_like(click)], dim=1)
        coords = torch.where(use_box[:, None, None], corners, first)
        labels = torch.where(
            use_box[:, None],
            torch.tensor([2, 3], device=coords.device),
            torch.tensor([1, -1], device=coords.device),
        )
        mask_input: Tensor | None = None
        loss = targets.new_zeros(())
        figures: dict[str, Tensor] = {}
        for turn in range(self.rounds):
            logits, predicted = decode(self.sam, embeddings, coords, labels, mask_input)
            losses = self.mask_losses(logits, targets)
            with torch.no_grad():
                ious = mask_ious(logits, targets)
            ambiguous = ~use_box if turn == 0 else torch.zeros_like(use_box)
            single_weight = torch.where(ambiguous, UNUSED_TOKEN_WEIGHT, 1.0)
            multi_weight = 1.5 - single_weight
            single, multi = losses[:, 0], losses[:, 1:].amin(1)
            quality = (predicted.float() - ious).square().mean(1)
            loss = loss + mean(single_weight * single + multi_weight * multi + IOU_WEIGHT * quality)

            with torch.no_grad():
                favourite = predicted[:, 1:].argmax(1) + 1
                shown = torch.where(ambiguous, favourite, 0)
                iou = ious.gather(1, shown[:, None])[:, 0]
                if turn == 0:
                    for name, chosen in (("click", ~use_box), ("box", use_box)):
                        share = (chosen * weights).sum().clamp_min(1)
                        figures[f"iou_{name}"] = (iou * chosen * weights).sum() / share
                    figures["iou_loss"] = mean(quality)
                else:
                    figures[f"iou_round{turn + 1}"] = mean(iou)
                if turn == self.rounds - 1:
                    break
                rows = torch.arange(count, device=logits.device)
                mask_input = logits[rows, shown][:, None].detach().float()
                wrong = (mask_input[:, 0] > 0) != inside
                wrong = torch.where(wrong.any(2).any(1)[:, None, None], wrong, inside)
                region = torch.where(middle[:, None, None], _central(wrong), wrong)
                click = sample_pixels(region, noise())
                cell = (click / 4).long()
                label = inside[rows, cell[:, 1], cell[:, 0]].long()
                coords = torch.cat([coords, click[:, None]], dim=1)
                labels = torch.cat([labels, label[:, None]], dim=1)
        figures["loss"] = loss.detach()
        return loss, figures


def normalise(sam: Any, scenes: SceneBatch) -> Tensor:
    """[B, 3, S, S] as the encoder wants them: zero outside the pictures."""
    images = (scenes.images.float() - sam.pixel_mean) / sam.pixel_std
    outside = (scenes.owner == PADDING)[:, None]
    return images.masked_fill_(outside, 0)

"""How good masks are: mean IoU with true masks, by kind of prompt, at the picture's full size.

The protocol follows Segment Anything (arXiv:2304.02643), section 7.1 and appendix D.1:

- 1 click: the point of the mask farthest from its edge; three masks, of which the one with the
  highest predicted IoU counts. The best of the three against the true mask ("oracle") is
  reported beside it, because a single click can mean a part or the whole.
- box: the tight box; the single mask (token 0).
- 3 clicks: each further click at the point of the wrong region farthest from its edge, with the
  last mask's logits as the mask prompt; the single mask after the third click.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.building.accuracy import mask_iou
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import Decoder
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.modeling.prompt_encoder import LABEL_BACKGROUND, LABEL_FOREGROUND
from samtrt.pictures.transforms import MASK_THRESHOLD, ResizeLongestSide, Size, preprocess

PROMPT_KINDS = ("1 click", "1 click, oracle", "box", "3 clicks")
_MASKS_AT_ONCE = 16  # full-size masks of all prompts would take gigabytes

Encode = Callable[[Tensor], Tensor]


@dataclass
class MaskRecord:
    """What was measured on one true mask.

    Attributes:
        group: what the mask shows, for tables ("polygon", "part", …).
        iou: by prompt kind, against the true mask.
        predicted: (predicted IoU, IoU) of every mask that the decoder returned for the kinds
            above: three for the click, one for the box, one for the three clicks.
        against: by prompt kind, IoU with the other engine's mask for the same first prompts;
            empty without one.
    """

    group: str
    iou: dict[str, float]
    predicted: list[tuple[float, float]]
    against: dict[str, float] = field(default_factory=dict)


def distance_inside(regions: Tensor) -> Tensor:
    """Euclidean distance of every cell to the nearest one outside its region.

    Exact, in two separable passes (Felzenszwalb and Huttenlocher, 2012); what lies beyond the
    frame is outside.

    Args:
        regions: [n, h, w] bool.

    Returns:
        [n, h, w] float32, 0 outside the regions.
    """
    padded = F.pad(regions, (1, 1, 1, 1))
    rows = torch.arange(padded.shape[1], device=regions.device)[:, None]
    last = torch.where(padded, -1, rows).cummax(1).values
    following = torch.where(padded, padded.shape[1], rows).flip(1).cummin(1).values.flip(1)
    column = torch.minimum(rows - last, following - rows).float().square_()
    best = column.clone()
    reach = int(column.max().sqrt().item()) if column.numel() else 0
    for shift in range(1, min(reach, padded.shape[2] - 1) + 1):
        square = float(shift * shift)
        best[..., shift:] = torch.minimum(best[..., shift:], column[..., :-shift] + square)
        best[..., :-shift] = torch.minimum(best[..., :-shift], column[..., shift:] + square)
    return best.sqrt_()[:, 1:-1, 1:-1]


def deepest_points(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Cells [n, 2] (x, y) farthest from the edge of each region [n, h, w], and how far [n]."""
    depth, index = distance_inside(regions).flatten(1).max(1)
    width = regions.shape[-1]
    return torch.stack([index % width, index // width], dim=-1), depth


def correlation(pairs: list[tuple[float, float]]) -> float:
    """Pearson's correlation of the pairs; NaN where either side does not vary."""
    if len(pairs) < 2:
        return float("nan")
    first, second = np.array(pairs, dtype=np.float64).T
    if first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


class _Picture:
    """One picture with its true masks: frames, cells and IoUs."""

    def __init__(
        self, image: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], img_size: int, device: Any
    ) -> None:
        self.img_size = img_size
        self.original_size: Size = (image.shape[0], image.shape[1])
        self.input, self.input_size = preprocess(image, img_size, device)
        self.masks = torch.from_numpy(masks).to(device)
        # Clicks are found on the decoder's own grid: a cell is 4 × 4 pixels of the frame.
        frame = F.interpolate(
            self.masks[None].float(), self.input_size, mode="bilinear", antialias=True
        )[0]
        padding = (0, img_size - self.input_size[1], 0, img_size - self.input_size[0])
        coverage = F.avg_pool2d(F.pad(frame, padding), 4)
        thin = (coverage > 0.5).flatten(1).any(1)
        # A mask that fills half of no cell is clicked in the cell it fills most.
        self.cells = torch.where(
            thin[:, None, None], coverage > 0.5, coverage == coverage.amax((1, 2), keepdim=True)
        )

    def boxes(self) -> Tensor:
        """[K, 4] tight boxes (x0, y0, x1, y1) in pixels of the model's frame."""
        columns, rows = self.masks.any(1).int(), self.masks.any(2).int()
        height, width = self.original_size
        x0, y0 = columns.argmax(1), rows.argmax(1)
        x1, y1 = width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)
        boxes = torch.stack([x0, y0, x1, y1], dim=-1)
        return ResizeLongestSide(self.img_size).apply_boxes_torch(boxes, self.original_size)


class _Prompter:
    """Prompts one engine about one picture."""

    def __init__(self, encode: Encode, decoder: Decoder, picture: _Picture) -> None:
        self.decoder, self.picture = decoder, picture
        self.embedded = EmbeddedPicture(
            encode(picture.input), picture.original_size, picture.input_size, picture.img_size
        )

    def decode(self, multimask_output: bool, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        """The answers to what ``Prompts.from_tensors`` takes after the picture."""
        prompts = Prompts.from_tensors(self.embedded, *given)
        return self.decoder(self.embedded, prompts, multimask_output)

    def answers(self, rows: slice) -> dict[str, tuple[Tensor, Tensor]]:
        """By prompt kind: logits [k, M, h, w] and predicted IoUs [k, M] for masks ``rows``."""
        picture = self.picture
        cells = picture.cells[rows]
        place, _ = deepest_points(cells)
        coords = (place * 4.0 + 1.5)[:, None]
        labels = torch.full_like(coords[..., 0], LABEL_FOREGROUND)
        masks, scores = self.decode(True, coords, labels)
        answers = {"1 click": (masks, scores)}
        each = torch.arange(len(masks), device=masks.device)
        last = masks[each, scores.argmax(1)][:, None]
        for _ in range(2):
            shown = last[:, 0] > MASK_THRESHOLD
            missed, missed_depth = deepest_points(cells & ~shown)
            extra, extra_depth = deepest_points(shown & ~cells)
            inside = missed_depth >= extra_depth
            click = torch.where(inside[:, None], missed, extra)
            # A perfect mask gets its first click again.
            perfect = (missed_depth + extra_depth) == 0
            click = torch.where(perfect[:, None], place, click)
            label = torch.where(inside, LABEL_FOREGROUND, LABEL_BACKGROUND)
            coords = torch.cat([coords, (click * 4.0 + 1.5)[:, None]], dim=1)
            labels = torch.cat([labels, label[:, None].to(labels)], dim=1)
            last, scores = self.decode(False, coords, labels, None, last)
        answers["3 clicks"] = (last, scores)
        answers["box"] = self.decode(False, None, None, picture.boxes()[rows])
        return answers


@torch.inference_mode()
def evaluate_picture(
    encode: Encode,
    decoder: Decoder,
    image: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.bool_],
    groups: list[str],
    device: torch.device | str = "cpu",
    against: Encode | None = None,
) -> list[MaskRecord]:
    """Prompts for every mask of a picture and measures the answers.

    Args:
        encode: [1, 3, S, S] → [1, 256, S/16, S/16], S the decoder's ``img_size``.
        decoder: has four masks for a prompt.
        image: [H, W, 3] uint8 RGB.
        masks: [K, H, W] true masks, none of them empty.
        groups: K names for the tables.
        device: where the picture goes before ``encode``.
        against: another encoder; its masks for the click and the box are compared with those of
            ``encode``, with the same decoder. (From the second click on each engine's prompts
            depend on its own masks, so three clicks are not compared.)
    """
    picture = _Picture(image, masks, decoder.img_size, device)
    first = _Prompter(encode, decoder, picture)
    second = None if against is None else _Prompter(against, decoder, picture)
    records = []
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        rows = slice(start, start + _MASKS_AT_ONCE)
        true = picture.masks[rows][:, None]
        answers = first.answers(rows)
        shown = {kind: cut_out(logits, picture) for kind, (logits, _) in answers.items()}
        ious = {kind: mask_iou(full, true) for kind, full in shown.items()}
        agreement: dict[str, Tensor] = {}
        if second is not None:
            others = second.answers(rows)
            for kind in ("1 click", "box"):
                agreement[kind] = mask_iou(cut_out(others[kind][0], picture), shown[kind])
        for row in range(len(true)):
            best = int(answers["1 click"][1][row].argmax())
            records.append(
                MaskRecord(
                    groups[start + row],
                    {
                        "1 click": ious["1 click"][row, best].item(),
                        "1 click, oracle": ious["1 click"][row].max().item(),
                        "box": ious["box"][row, 0].item(),
                        "3 clicks": ious["3 clicks"][row, 0].item(),
                    },
                    [
                        (score, iou)
                        for kind, (_, scores) in answers.items()
                        for score, iou in zip(
                            scores[row].tolist(), ious[kind][row].tolist(), strict=True
                        )
                    ],
                    {kind: values[row].mean().item() for kind, values in agreement.items()},
                )
            )
    return records


def summarise(records: Iterable[MaskRecord]) -> dict[str, Any]:
    """Means over masks, as JSON: ``mean_iou`` by prompt kind, ``by_group``, correlations.

    ``predicted_iou_correlation`` is Pearson's, over every mask that the decoder returned;
    ``predicted_iou_correlation_1_click`` over the three masks of the clicks alone.
    """
    records = list(records)

    def means(chosen: list[MaskRecord]) -> dict[str, float]:
        return {
            kind: float(np.mean([record.iou[kind] for record in chosen])) for kind in PROMPT_KINDS
        }

    groups = sorted({record.group for record in records})
    by_group = {}
    for group in groups:
        chosen = [record for record in records if record.group == group]
        by_group[group] = {"masks": len(chosen), **means(chosen)}
    summary: dict[str, Any] = {
        "masks": len(records),
        "mean_iou": means(records),
        "predicted_iou_correlation": correlation([p for r in records for p in r.predicted]),
        "predicted_iou_correlation_1_click": correlation(
            [pair for record in records for pair in record.predicted[:3]]
        ),
        "by_group": by_group,
    }
    if records and records[0].against:
        summary["mean_iou_against"] = {
            kind: float(np.mean([record.against[kind] for record in records]))
            for kind in records[0].against
        }
    return summary

"""Where logits become masks: upscale, crop, upscale again, *then* cut; in bounded memory.

On a GPU with Triton one kernel does all of it and writes no logit; elsewhere
``transforms.postprocess_masks`` upscales a part of the masks at a time.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from samtrt.kernels import HAS_TRITON
from samtrt.pictures.transforms import MASK_THRESHOLD, Placed, postprocess_masks
from samtrt.torch_state import as_written

# Upscaled logits held at once, in bytes. On the CPU a few masks, so that they stay near the cache.
_LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}


def upscaled_logits(low_res: Tensor, picture: Placed) -> Tensor:
    """Logits [B, M, 4h, 4w] → [B, M, H, W] float32 at the picture's size, on the same device."""
    shape = (*low_res.shape[:2], *picture.original_size)
    found = torch.empty(shape, dtype=torch.float32, device=low_res.device)
    for part, logits in _parts(low_res.flatten(0, 1), picture):
        found.flatten(0, 1)[part] = logits
    return found


def cut_out(low_res: Tensor, picture: Placed, threshold: float = MASK_THRESHOLD) -> Tensor:
    """Logits [B, M, 4h, 4w] → bool masks [B, M, H, W] at the picture's size, on the same device.

    Args:
        threshold: a pixel belongs to the mask where its logit is greater.
    """
    shape = (*low_res.shape[:2], *picture.original_size)
    flat = low_res.flatten(0, 1)
    if _on_triton(flat):
        from samtrt.kernels.triton.mask_cut import cut_masks  # needs triton

        sizes = picture.input_size, picture.original_size, picture.img_size
        return cut_masks(flat.float().contiguous(), *sizes, threshold).view(shape)
    masks = torch.empty(shape, dtype=torch.bool, device=low_res.device)
    for part, logits in _parts(flat, picture):
        torch.gt(logits, threshold, out=masks.flatten(0, 1)[part])
    return masks


def cut_out_with_stability(
    low_res: Tensor, picture: Placed, threshold: float, offset: float
) -> tuple[Tensor, Tensor]:
    """Masks and how little they depend on the threshold.

    Args:
        low_res: [n, 4h, 4w] logits.
        offset: of the two cuts whose IoU is the score.

    Returns:
        Bool masks [n, H, W], by rows or by columns in memory, and float32 scores [n]; see
        ``stability_scores``.
    """
    if _on_triton(low_res):
        from samtrt.kernels.triton.mask_cut import cut_and_count  # needs triton

        sizes = picture.input_size, picture.original_size, picture.img_size
        masks, areas = cut_and_count(low_res.float().contiguous(), *sizes, threshold, offset)
        return masks, _ratio(areas[:, 0], areas[:, 1])
    count, device = len(low_res), low_res.device
    if device.type == "cpu":
        return _cut_in_windows(low_res, picture, threshold, offset)
    masks = torch.empty(count, *picture.original_size, dtype=torch.bool, device=device)
    scores = torch.empty(count, dtype=torch.float32, device=device)
    for part, logits in _parts(low_res, picture):
        torch.gt(logits, threshold, out=masks[part])
        scores[part] = stability_scores(logits, threshold, offset)
    return masks, scores


def _cut_in_windows(
    low_res: Tensor, picture: Placed, threshold: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``cut_out_with_stability`` on the CPU: looks only where a logit can pass the lower cut."""
    masks = torch.zeros(len(low_res), *picture.original_size, dtype=torch.bool, device="cpu")
    areas = np.zeros((len(low_res), 2), np.int64)
    passing = low_res.float() > _below(threshold - abs(offset))
    for part, logits in _parts(low_res, picture):
        for number, upscaled in enumerate(logits, start=part.start):
            window = _window(passing[number], picture)
            if window is None:
                continue
            values = upscaled[window].numpy()
            np.greater(values, threshold, out=masks[number].numpy()[window])
            areas[number] = [
                np.count_nonzero(values > threshold + sign * offset) for sign in (1, -1)
            ]
    inner, outer = torch.from_numpy(areas).unbind(1)
    return masks, _ratio(inner, outer)


def _below(level: float) -> float:
    """A little less: upscaled logits, which are means of others, may exceed these by rounding."""
    return level - 1e-3 * (1 + abs(level))


def _window(passing: Tensor, picture: Placed) -> tuple[slice, slice] | None:
    """The pixels of the picture that a logit which passes has a part in, and a few around them.

    Args:
        passing: bool [4h, 4w].

    Returns:
        Rows and columns; None where no logit passes.
    """
    window = []
    for axis in (0, 1):
        occupied = np.flatnonzero(passing.numpy().any(axis=1 - axis))
        if not len(occupied):
            return None
        in_frame = picture.img_size / passing.shape[axis]  # pixels of the frame in one logit's
        scale = picture.original_size[axis] / picture.input_size[axis]
        # Each upscaling has a value reach into its neighbours' pixels; two more for rounding.
        first = ((occupied[0] - 1) * in_frame - 2) * scale - 2
        last = ((occupied[-1] + 2) * in_frame + 2) * scale + 2
        window.append(slice(max(0, int(first)), max(0, int(last) + 1)))
    return window[0], window[1]


def stability_scores(logits: Tensor, threshold: float, offset: float) -> Tensor:
    """IoU of each mask cut at ``threshold + offset`` and at ``threshold - offset``.

    Args:
        logits: [..., H, W].

    Returns:
        float32 [...]; 0 where both cuts are empty. Meta's code has 0/0 = NaN there, which its
        filter drops as it drops 0, and which no JSON can hold.
    """
    # The upper cut lies inside the lower one, so the IoU is a ratio of their areas.
    inner, outer = (_areas(logits > threshold + sign * offset) for sign in (1, -1))
    return _ratio(inner, outer)


def masks_at_once(device: torch.device, picture: Placed) -> int:
    """How many masks are upscaled at once on that device; at least 1."""
    rows, columns = picture.original_size
    pixels = max(picture.img_size**2, rows * columns)
    return max(1, _LOGIT_BYTES["cuda" if device.type == "cuda" else "cpu"] // (4 * pixels))


def _parts(low_res: Tensor, picture: Placed) -> Iterator[tuple[slice, Tensor]]:
    """Places and upscaled logits [k, H, W] of [n, 4h, 4w], a few at a time."""
    step = masks_at_once(low_res.device, picture)
    for start in range(0, len(low_res), step):
        part = slice(start, start + step)
        with as_written():
            logits = postprocess_masks(
                low_res[part, None].float(),
                picture.input_size,
                picture.original_size,
                picture.img_size,
            )
        yield part, logits[:, 0]


def _on_triton(low_res: Tensor) -> bool:
    return HAS_TRITON and low_res.is_cuda


def _areas(masks: Tensor) -> Tensor:
    """Foreground pixels of each bool mask [..., H, W], as int64 [...]."""
    if masks.is_cuda or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return masks.flatten(-2).sum(-1)
    # NumPy counts a bool array many times faster than torch sums one on the CPU.
    areas = [np.count_nonzero(mask) for mask in masks.reshape(-1, *masks.shape[-2:]).numpy()]
    return torch.tensor(areas, dtype=torch.int64, device="cpu").view(masks.shape[:-2])


def _ratio(inner: Tensor, outer: Tensor) -> Tensor:
    return inner.float() / outer.clamp(min=1)

"""Upscales mask logits to the picture and cuts them, without writing a logit.

Replaces, for many masks at once, ``Sam.postprocess_masks`` (two bilinear interpolations with a
crop between them, segment_anything/modeling/sam.py), the comparison with the threshold, and the
areas that ``calculate_stability_score`` counts (segment_anything/utils/amg.py). Those write and
read some 15 bytes a pixel; this writes one.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 32  # side of an output tile, in pixels


@triton.jit
def _taps(index, scale, size):
    """The two source pixels of an output pixel and the weight of the second, as in torch."""
    source = tl.maximum((index + 0.5) * scale - 0.5, 0.0)
    first = source.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), source - first


@triton.jit
def _sample(logits_ptr, y, x, low_scale_y, low_scale_x, low_height, low_width, mask):
    """The logits at pixel (y, x) of the model's frame."""
    y0, y1, weight_y = _taps(y, low_scale_y, low_height)
    x0, x1, weight_x = _taps(x, low_scale_x, low_width)
    top = tl.load(logits_ptr + y0 * low_width + x0, mask=mask, other=0.0) * (1 - weight_x)
    top += tl.load(logits_ptr + y0 * low_width + x1, mask=mask, other=0.0) * weight_x
    bottom = tl.load(logits_ptr + y1 * low_width + x0, mask=mask, other=0.0) * (1 - weight_x)
    bottom += tl.load(logits_ptr + y1 * low_width + x1, mask=mask, other=0.0) * weight_x
    return top * (1 - weight_y) + bottom * weight_y


@triton.jit(do_not_specialize=["input_height", "input_width", "height", "width"])
def _cut_kernel(
    logits_ptr,
    masks_ptr,
    areas_ptr,
    low_height,
    low_width,
    input_height,
    input_width,
    height,
    width,
    low_scale_y,
    low_scale_x,
    scale_y,
    scale_x,
    threshold,
    offset,
    BLOCK: tl.constexpr,
    BY_COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
):
    mask_index = tl.program_id(0).to(tl.int64)
    x = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    y = (tl.program_id(2) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (x < width) & (y < height)
    logits_ptr += mask_index * low_height * low_width

    y0, y1, weight_y = _taps(y, scale_y, input_height)
    x0, x1, weight_x = _taps(x, scale_x, input_width)
    ly, lx, lh, lw = low_scale_y, low_scale_x, low_height, low_width
    top = _sample(logits_ptr, y0, x0, ly, lx, lh, lw, inside) * (1 - weight_x)
    top += _sample(logits_ptr, y0, x1, ly, lx, lh, lw, inside) * weight_x
    bottom = _sample(logits_ptr, y1, x0, ly, lx, lh, lw, inside) * (1 - weight_x)
    bottom += _sample(logits_ptr, y1, x1, ly, lx, lh, lw, inside) * weight_x
    logit = top * (1 - weight_y) + bottom * weight_y

    place = x * height + y if BY_COLUMNS else y * width + x
    tl.store(masks_ptr + mask_index * width * height + place, logit > threshold, mask=inside)
    if COUNT:
        inner = tl.sum(((logit > threshold + offset) & inside).to(tl.int32))
        outer = tl.sum(((logit > threshold - offset) & inside).to(tl.int32))
        tl.atomic_add(areas_ptr + 2 * mask_index, inner)
        tl.atomic_add(areas_ptr + 2 * mask_index + 1, outer)


def cut_masks(
    logits: torch.Tensor,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    img_size: int,
    threshold: float,
) -> torch.Tensor:
    """Masks at the picture's size.

    Args:
        logits: [n, h, w] fp32 of the mask decoder, contiguous.
        input_size: (height, width) of the picture within the model's frame.
        original_size: (H, W) of the picture.
        img_size: side of the model's frame.
        threshold: a pixel belongs to the mask where its logit is greater.

    Returns:
        Bool masks [n, H, W], contiguous.
    """
    masks = torch.empty(len(logits), *original_size, dtype=torch.bool, device=logits.device)
    _cut(logits, masks, None, input_size, original_size, img_size, threshold, 0.0)
    return masks


def cut_and_count(
    logits: torch.Tensor,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    img_size: int,
    threshold: float,
    offset: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``cut_masks``, and the areas that stability scores are made of.

    Args:
        offset: above and below the threshold, where the areas are counted.

    Returns:
        Bool masks [n, H, W], column by column in memory (as runs are encoded), and int32 areas
        [n, 2] of the cuts at ``threshold + offset`` and ``threshold - offset``.
    """
    count, (height, width) = len(logits), original_size
    masks = torch.empty(count, width, height, dtype=torch.bool, device=logits.device)
    areas = torch.zeros(count, 2, dtype=torch.int32, device=logits.device)
    _cut(logits, masks, areas, input_size, original_size, img_size, threshold, offset)
    return masks.transpose(1, 2), areas


def _cut(
    logits: torch.Tensor,
    masks: torch.Tensor,
    areas: torch.Tensor | None,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    img_size: int,
    threshold: float,
    offset: float,
) -> None:
    """Fills masks: by rows without areas, by columns with them."""
    count, low_height, low_width = logits.shape
    if not count:
        return
    height, width = original_size
    with torch.cuda.device_of(logits):
        _cut_kernel[(count, triton.cdiv(width, _BLOCK), triton.cdiv(height, _BLOCK))](
            logits,
            masks,
            masks if areas is None else areas,
            low_height,
            low_width,
            *input_size,
            height,
            width,
            low_height / img_size,
            low_width / img_size,
            input_size[0] / height,
            input_size[1] / width,
            threshold,
            offset,
            BLOCK=_BLOCK,
            BY_COLUMNS=areas is not None,
            COUNT=areas is not None,
            num_warps=4,
        )

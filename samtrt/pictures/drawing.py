"""A mask drawn over its picture, for people to look at."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from samtrt.masks.prompts import Prompt

Color = tuple[int, int, int]

MASK_COLOR: Color = (30, 144, 255)
BOX_COLOR: Color = (255, 196, 0)
FOREGROUND_COLOR: Color = (0, 168, 84)
BACKGROUND_COLOR: Color = (221, 44, 60)
_CAPTION_COLOR: Color = (24, 28, 34)
_FILL_OPACITY = 0.42
_SURROUNDINGS_DARKENED = 0.22
_SUPERSAMPLING = 4  # Pillow draws without antialiasing


def draw_overlay(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], prompt: Prompt | None = None
) -> npt.NDArray[np.uint8]:
    """The picture with the mask tinted and outlined, its surroundings darker, and the prompt.

    Foreground points are green discs with a plus, background points red ones with a minus, the
    box is yellow. Sizes follow the picture's.

    Args:
        image: [H, W, 3] uint8, RGB.
        mask: [H, W] bool.
        prompt: in the picture's pixels; None draws none.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    unit = max(image.shape[:2]) / 1000  # one thousandth of the long side
    coverage = Image.fromarray(mask.astype(np.uint8) * 255)
    canvas = Image.fromarray(np.ascontiguousarray(image))
    _tint(canvas, (0, 0, 0), coverage.point(lambda v: round((255 - v) * _SURROUNDINGS_DARKENED)))
    _tint(canvas, MASK_COLOR, coverage.point(lambda v: round(v * _FILL_OPACITY)))
    width = max(1.2, 2.2 * unit)
    _tint(canvas, (255, 255, 255), _outline(coverage, 1.9 * width))
    _tint(canvas, MASK_COLOR, _outline(coverage, width))
    if prompt is not None and prompt.box is not None:
        _draw_box(canvas, prompt.box, max(2, round(3 * unit)))
    if prompt is not None:
        for point, label in zip(prompt.point_coords, prompt.point_labels, strict=True):
            _draw_point(canvas, point, bool(label), max(5.0, 11 * unit))
    return np.array(canvas)


def side_by_side(
    pictures: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Pictures [H, W, 3] of one size in a row (in a column if wide), a caption above each."""
    height, width = pictures[0].shape[:2]
    text_size = max(12, round(max(height, width) / 32))
    bar, gap = 2 * text_size, max(2, text_size // 3)
    in_a_row = width < 2 * height
    step_x, step_y = (width + gap, 0) if in_a_row else (0, height + bar + gap)
    count = len(pictures)
    size = (width + (count - 1) * step_x, height + bar + (count - 1) * step_y)
    sheet = Image.new("RGB", size, _CAPTION_COLOR)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(text_size)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i * step_x, i * step_y
        draw.text((x + text_size // 2, y + bar // 2), caption, "white", font, anchor="lm")
        sheet.paste(Image.fromarray(picture), (x, y + bar))
    return np.array(sheet)


def _tint(canvas: Image.Image, color: Color, alpha: Image.Image) -> None:
    canvas.paste(color, (0, 0), alpha)


def _outline(coverage: Image.Image, width: float) -> Image.Image:
    """Opacity of a smooth line of that width, in pixels, along the mask's edge."""
    # Across a blurred edge the value runs from 0 to 255; its middle half is the line.
    blurred = coverage.filter(ImageFilter.GaussianBlur(0.75 * width))
    return blurred.point(lambda v: round(255 * min(1.0, max(0.0, 3 * (1 - abs(v - 127.5) / 95)))))


def _draw_box(canvas: Image.Image, box: Sequence[float], width: int) -> None:
    draw = ImageDraw.Draw(canvas)
    x0, y0, x1, y1 = (round(value) for value in box)
    right, bottom = min(x1, canvas.width - 1), min(y1, canvas.height - 1)
    # A dark line with a bright one inside it shows on any ground.
    draw.rectangle((x0, y0, right, bottom), outline=(0, 0, 0), width=width + 2)
    inner = (x0 + 1, y0 + 1, max(x0 + 1, right - 1), max(y0 + 1, bottom - 1))
    draw.rectangle(inner, outline=BOX_COLOR, width=width)


def _draw_point(
    canvas: Image.Image, point: Sequence[float], foreground: bool, radius: float
) -> None:
    scale = _SUPERSAMPLING
    side = 2 * int(radius + 3)
    stamp = Image.new("RGBA", (side * scale, side * scale))
    draw = ImageDraw.Draw(stamp)
    center = side * scale / 2
    ring, sign = max(1.5, 0.22 * radius) * scale, max(1, round(0.26 * radius * scale))
    radius *= scale

    def disc(r: float, color: tuple[int, ...]) -> None:
        draw.ellipse((center - r, center - r, center + r, center + r), fill=color)

    disc(radius + scale, (0, 0, 0, 110))  # a rim, so that it shows on white too
    disc(radius, (255, 255, 255, 255))
    disc(radius - ring, FOREGROUND_COLOR if foreground else BACKGROUND_COLOR)
    arm = 0.45 * radius
    draw.line((center - arm, center, center + arm, center), (255, 255, 255), sign)
    if foreground:
        draw.line((center, center - arm, center, center + arm), (255, 255, 255), sign)
    stamp = stamp.resize((side, side), Image.Resampling.BOX)
    x, y = round(point[0] + 0.5 - side / 2), round(point[1] + 0.5 - side / 2)
    canvas.paste(stamp, (x, y), stamp)

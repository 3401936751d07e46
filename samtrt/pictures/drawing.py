"""A mask drawn over its picture, for people to look at."""

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]

MASK_COLOR: Color = (30, 144, 255)
BOX_COLOR: Color = (255, 196, 0)
FOREGROUND_COLOR: Color = (0, 168, 84)
BACKGROUND_COLOR: Color = (221, 44, 60)
_CAPTION_COLOR: Color = (24, 28, 34)
_FILL_OPACITY = 0.42
_SURROUNDINGS_DARKENED = 0.22
_SUPERSAMPLING = 4  # Pillow draws without antialiasing
_PAINT_OPACITY = 0.5
_EDGE_BRIGHTNESS = 0.35
_GOLDEN_RATIO = 0.618034  # steps of it spread hues evenly, however many there are
_ROWS_AT_ONCE = 64


def draw_overlay(
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_],
    point_coords: Sequence[Sequence[float]] = (),
    point_labels: Sequence[int] = (),
    box: Sequence[float] | None = None,
) -> npt.NDArray[np.uint8]:
    """The picture with the mask tinted and outlined, its surroundings darker, and the prompt.

    Foreground points are green discs with a plus, background points red ones with a minus, the
    box is yellow. Sizes follow the picture's.

    Args:
        image: [H, W, 3] uint8, RGB.
        mask: [H, W] bool.
        point_coords: (x, y) of each point, in the picture's pixels.
        point_labels: 1 for foreground, 0 for background, one for each point.
        box: (x0, y0, x1, y1) in the picture's pixels, or None.

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
    if box is not None:
        _draw_box(canvas, box, max(2, round(3 * unit)))
    for point, label in zip(point_coords, point_labels, strict=True):
        _draw_point(canvas, point, bool(label), max(5.0, 11 * unit))
    return np.array(canvas)


def paint_masks(
    image: npt.NDArray[np.uint8], masks: Sequence[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.uint8]:
    """The picture with each mask in a colour of its own; smaller masks lie on larger ones.

    Args:
        image: [H, W, 3] uint8, RGB.
        masks: bool [H, W] each.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    return paint_in_order(image, sorted(masks, key=lambda mask: -int(mask.sum())))


def paint_in_order(
    image: npt.NDArray[np.uint8], masks: Iterable[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.uint8]:
    """``paint_masks`` with each mask on those before it; an iterator's are held one at a time."""
    height = len(image)
    top = top_masks(image.shape[:2], masks)
    colors = _colors(int(top.max(initial=0)))
    painted = np.empty_like(image)
    for start in range(0, height, _ROWS_AT_ONCE):  # floating-point pixels of a few rows only
        rows = slice(start, start + _ROWS_AT_ONCE)
        here = top[rows]
        edge = np.zeros(here.shape, dtype=bool)
        edge[:, 1:] = here[:, 1:] != here[:, :-1]
        edge[1:] |= here[1:] != here[:-1]
        if start:
            edge[0] |= here[0] != top[start - 1]
        opacity = np.where(here > 0, _PAINT_OPACITY, 0.0)[..., None]
        pixels = image[rows] * (1 - opacity) + colors[here] * opacity
        # So that similar colours still part.
        pixels[edge] *= _EDGE_BRIGHTNESS
        painted[rows] = pixels.round()
    return painted


def top_masks(
    size: tuple[int, int], masks: Iterable[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.int32]:
    """Which mask is seen where each lies on those before it.

    Args:
        size: (height, width).
        masks: bool [H, W] each; an iterator's are held one at a time.

    Returns:
        int32 [H, W]: 0 where there is none, else 1 for the first.
    """
    top = np.zeros(size, dtype=np.int32)
    for number, mask in enumerate(masks, start=1):
        top[mask] = number
    return top


def palette_of(count: int) -> npt.NDArray[np.uint8]:
    """Colours of as many masks, black before them: uint8 [count + 1, 3], RGB."""
    colors = _colors(count).round().astype(np.uint8)
    colors[0] = 0
    return colors


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


def _colors(count: int) -> npt.NDArray[np.float64]:
    """[count + 1, 3] RGB from 0 to 255; neighbours differ."""
    hues = np.arange(count + 1) * _GOLDEN_RATIO % 1.0
    return 255 * np.array([colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues])


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

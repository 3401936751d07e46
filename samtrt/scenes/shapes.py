"""Outlines as fields of approximate signed distance, in pixels, negative inside.

Each function takes a flat batch of M shapes and a window of the picture, so that a GPU draws all
shapes of a kind over the whole picture at once, and a CPU each in its own bounding box.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ANGLES = 2048  # entries of a radial outline: 0.8 pixels of arc at a radius of 256 pixels
CURVE_SEGMENTS = 12
SPLINE_POINTS = 8
POLYGON_POINTS = 10
GLYPH_HEIGHT, GLYPH_WIDTH = 128, 256
WORDS = (
    *"ABCDEFGHJKLMNPRSTUVXYZ2345679&?%#",
    *("AB", "GO", "UP", "ON", "OK", "NO", "42", "7K", "SAM", "RUN", "CUT", "MAP", "SKY", "BOX"),
)


@dataclass(frozen=True)
class Window:
    """The pixels in which shapes are drawn: ``height`` × ``width`` from (``top``, ``left``)."""

    top: int
    left: int
    height: int
    width: int

    def offsets(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of the pixel centres from [M, 2] points (x, y): x [M, 1, W] and y [M, H, 1]."""
        x = torch.arange(self.left, self.left + self.width, device=centre.device) + 0.5
        y = torch.arange(self.top, self.top + self.height, device=centre.device) + 0.5
        return x[None, None, :] - centre[:, 0, None, None], y[None, :, None] - centre[
            :, 1, None, None
        ]


def polygon_outline(points: Tensor) -> Tensor:
    """[M, ANGLES] radius over angle of star-shaped polygons [M, V, 2] around the origin."""
    angle = torch.arange(ANGLES, device=points.device) * (2 * math.pi / ANGLES)
    ray_x, ray_y = angle.cos()[None], angle.sin()[None]
    radius = points.new_zeros(len(points), ANGLES)
    following = points.roll(-1, dims=1)
    for vertex in range(points.shape[1]):
        ax, ay = points[:, vertex, 0, None], points[:, vertex, 1, None]
        bx, by = following[:, vertex, 0, None], following[:, vertex, 1, None]
        edge_x, edge_y = bx - ax, by - ay
        side_a, side_b = ray_x * ay - ray_y * ax, ray_x * by - ray_y * bx
        along = (ax * edge_y - ay * edge_x) / (ray_x * edge_y - ray_y * edge_x + 1e-9)
        crossed = (side_a <= 0) & (side_b >= 0) | (side_a >= 0) & (side_b <= 0)
        radius = torch.where(crossed & (along > 0), torch.maximum(radius, along), radius)
    return radius


def ellipse_outline(half_axes: Tensor, exponent: Tensor) -> Tensor:
    """[M, ANGLES] of superellipses: half axes [M, 2], exponent [M] (2: ellipse, 6: rounded)."""
    angle = torch.arange(ANGLES, device=half_axes.device) * (2 * math.pi / ANGLES)
    x = angle.cos().abs()[None] / half_axes[:, :1]
    y = angle.sin().abs()[None] / half_axes[:, 1:]
    power = exponent[:, None]
    return (x**power + y**power) ** (-1 / power)


def spline_outline(radii: Tensor) -> Tensor:
    """[M, ANGLES] of closed Catmull–Rom splines through evenly spaced radii [M, SPLINE_POINTS]."""
    count = radii.shape[1]
    position = torch.arange(ANGLES, device=radii.device) * (count / ANGLES)
    knot = position.long()
    t = (position - knot)[None]
    p0, p1, p2, p3 = (radii[:, (knot + shift) % count] for shift in (-1, 0, 1, 2))
    return p1 + 0.5 * t * (
        p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0))
    )


def radial_field(window: Window, centre: Tensor, outline: Tensor, rotation: Tensor) -> Tensor:
    """[M, H, W] field of outlines [M, ANGLES] around ``centre`` [M, 2], turned by [M] radians."""
    x, y = window.offsets(centre)
    turn = (torch.atan2(y, x) - rotation[:, None, None]) * (ANGLES / (2 * math.pi)) + 0.5
    entry = turn.floor_().long().remainder_(ANGLES)
    radius = outline.gather(1, entry.flatten(1)).view(entry.shape)
    return (x * x + y * y).sqrt_().sub_(radius)


def ring_field(field: Tensor, thickness: Tensor) -> Tensor:
    """The rim of that thickness [M] just inside an outline's field [M, H, W]."""
    return torch.maximum(field, -thickness[:, None, None] - field)


def curve_field(window: Window, points: Tensor, half_width: Tensor) -> Tensor:
    """[M, H, W] field of strokes along polylines [M, V, 2] with half widths [M]."""
    best = None
    for vertex in range(points.shape[1] - 1):
        start = points[:, vertex]
        edge = points[:, vertex + 1] - start
        x, y = window.offsets(start)
        edge_x, edge_y = edge[:, 0, None, None], edge[:, 1, None, None]
        length = (edge_x * edge_x + edge_y * edge_y).clamp_min(1e-6)
        t = (x * (edge_x / length) + y * (edge_y / length)).clamp_(0, 1)
        squared = (x - t * edge_x).square_() + (y - t * edge_y).square_()
        best = squared if best is None else torch.minimum(best, squared, out=best)
    assert best is not None
    return best.sqrt_().sub_(half_width[:, None, None])


def bezier_points(control: Tensor) -> Tensor:
    """[M, CURVE_SEGMENTS + 1, 2] points of cubic Bézier curves [M, 4, 2]."""
    t = torch.linspace(0, 1, CURVE_SEGMENTS + 1, device=control.device)[:, None]
    weights = torch.cat([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3], dim=1)
    return torch.einsum("vk,mkc->mvc", weights, control)


@lru_cache
def _glyph_pictures() -> Tensor:
    pictures = []
    font = ImageFont.load_default(size=110)
    for word in WORDS:
        left, top, right, bottom = font.getbbox(word, stroke_width=4)
        picture = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
        ImageDraw.Draw(picture).text((-left, -top), word, fill=255, font=font, stroke_width=4)
        picture = picture.resize((GLYPH_WIDTH, GLYPH_HEIGHT), Image.Resampling.BICUBIC)
        pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8))
    stack = torch.stack(pictures).view(len(WORDS), 1, GLYPH_HEIGHT, GLYPH_WIDTH)
    return F.pad(stack, (4, 4, 4, 4)).float() / 255


@lru_cache
def glyph_aspects() -> Tensor:
    """[number of WORDS] width over height of each word."""
    font = ImageFont.load_default(size=110)
    boxes = [font.getbbox(word, stroke_width=4) for word in WORDS]
    return torch.tensor([(right - left) / (bottom - top) for left, top, right, bottom in boxes])


@lru_cache
def _glyphs_on(device: torch.device) -> Tensor:
    return _glyph_pictures().to(device)


def text_field(
    window: Window, centre: Tensor, word: Tensor, half_size: Tensor, rotation: Tensor
) -> Tensor:
    """[M, H, W] field of words.

    Args:
        window: the pixels.
        centre: [M, 2] (x, y), pixels.
        word: [M] int64 indices into ``WORDS``.
        half_size: [M, 2] half width and half height, pixels.
        rotation: [M] radians.
    """
    x, y = window.offsets(centre)
    cosine, sine = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    # The atlas has 4 empty pixels on every side, which grid_sample repeats beyond its border.
    across = (x * cosine + y * sine) / half_size[:, 0, None, None]
    down = (y * cosine - x * sine) / half_size[:, 1, None, None]
    grid = torch.stack(
        [across * (GLYPH_WIDTH / (GLYPH_WIDTH + 8)), down * (GLYPH_HEIGHT / (GLYPH_HEIGHT + 8))],
        dim=-1,
    )
    glyphs = _glyphs_on(centre.device)[word]
    coverage = F.grid_sample(glyphs, grid, padding_mode="border", align_corners=False)[:, 0]
    return (0.5 - coverage) * 8

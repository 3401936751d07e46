"""Pictures for the parity gate and for calibration, where a user gives none: drawn, the same on
every machine."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_SIZES = ((768, 1024), (1000, 700))  # (height, width): one of each orientation
_OBJECTS = 14
_OVERSAMPLING = 2  # outlines are drawn larger and scaled down


def drawn_pictures() -> list[npt.NDArray[np.uint8]]:
    """Two pictures [H, W, 3] uint8 RGB: discs, rings, polygons and bars on a shaded, grainy ground.

    Objects overlap, are of all sizes, and touch the border: what masks are decoded from.
    """
    return [_draw(np.random.default_rng(seed), *size) for seed, size in enumerate(_SIZES)]


def calibration_pictures() -> list[npt.NDArray[np.uint8]]:
    """Four like ``drawn_pictures``, and others."""
    sizes = zip(range(len(_SIZES), len(_SIZES) + 4), 2 * _SIZES, strict=True)
    return [_draw(np.random.default_rng(seed), *size) for seed, size in sizes]


def _draw(generator: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    canvas = Image.new("RGB", (_OVERSAMPLING * width, _OVERSAMPLING * height), (128, 128, 128))
    draw = ImageDraw.Draw(canvas)
    for number in range(_OBJECTS):
        # The first are large and lie below.
        radius = _OVERSAMPLING * min(height, width) * 0.3 * 0.85**number
        centre = generator.uniform((0, 0), canvas.size)
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        corners = centre + radius * np.array([[-1.0, -0.8], [1.0, 0.8]])
        kind = number % 4
        if kind == 0:
            draw.ellipse([*corners.flatten()], fill=colour)
        elif kind == 1:
            angles = np.sort(generator.uniform(0, 2 * np.pi, 7))
            outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            draw.polygon([tuple(point) for point in outline], fill=colour)
        elif kind == 2:
            draw.ellipse([*corners.flatten()], outline=colour, width=max(4, int(radius / 3)))
        else:
            draw.rectangle([*corners.flatten()], fill=colour)
    pixels = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32)
    slope = np.linspace(-40, 40, width)[None, :] + np.linspace(30, -30, height)[:, None]
    grain = generator.normal(0, 6, (height, width))
    return np.clip(pixels + (slope + grain)[..., None], 0, 255).astype(np.uint8)

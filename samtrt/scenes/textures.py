"""Surfaces, light and the camera: what turns a map of owners into a picture."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrt.scenes.randomness import SceneRandom

# Annex K of the JPEG standard (ITU-T T.81): luminance and chrominance quantisation.
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

FLAT, GRADIENT, STRIPES, CHECKERS, CLOUDS, SPECKLES = range(6)
# Columns of a surface: two colours, then how they are mixed and lit.
SURFACE = (
    *("red1", "green1", "blue1", "red2", "green2", "blue2"),
    *("pattern", "wave_x", "wave_y", "phase", "light_x", "light_y", "dome", "x", "y", "radius"),
)


def surfaces(random: SceneRandom, count: int, size: int) -> Tensor:
    """[B, count, len(SURFACE)] random surfaces; position and radius are left 0 and 1.

    Each colour is, of four draws, the one farthest from the background (entry 0) and from the
    entry before it, so that few neighbours are camouflaged.
    """
    colours = random.lattice(4, count, 3)
    # Natural pictures hold many dull colours: pull each towards its own grey by a random amount.
    grey = colours.mean(-1, keepdim=True)
    colours = grey + (colours - grey) * random.lattice(4, count, 1)
    chosen = colours[:, 0].clone()
    for entry in range(1, count):
        candidates = colours[:, :, entry]
        ground = (candidates - chosen[:, None, 0]).norm(dim=-1)
        neighbour = (candidates - chosen[:, None, entry - 1]).norm(dim=-1)
        best = torch.minimum(ground, neighbour).argmax(1)
        chosen[:, entry] = candidates[torch.arange(len(chosen)), best]
    second = chosen + random.uniform(-0.35, 0.35, count, 3) * random.lattice(count, 1)
    pattern = random.integers(FLAT, SPECKLES + 1, count).float()
    angle = random.uniform(0, 2 * math.pi, count)
    wave = 2 * math.pi / (random.log_uniform(14, 90, count) * size / 1024)
    light = random.uniform(0, 2 * math.pi, count)
    strength = random.uniform(0, 0.3, count)
    table = torch.zeros(len(chosen), count, len(SURFACE))
    table[..., 0:3] = chosen
    table[..., 3:6] = second.clamp(0, 1)
    table[..., 6] = pattern
    table[..., 7], table[..., 8] = wave * angle.cos(), wave * angle.sin()
    table[..., 9] = random.uniform(0, 2 * math.pi, count)
    table[..., 10], table[..., 11] = strength * light.cos(), strength * light.sin()
    table[..., 12] = random.uniform(-0.05, 0.25, count)
    table[..., 15] = 1
    return table


def clouds(random: SceneRandom, size: int, sides: tuple[int, ...]) -> Tensor:
    """[B, size, size] multi-octave value noise about 0, deviation near 0.5."""
    total: Tensor | None = None
    norm = 0.0
    for octave, side in enumerate(sides):
        weight = 0.6**octave
        norm += weight * weight
        layer = F.interpolate(
            random.uniform(-1, 1, 1, side, side), size=(size, size), mode="bicubic"
        )[:, 0].mul_(weight)
        total = layer if total is None else total.add_(layer)
    assert total is not None
    return total.div_(math.sqrt(norm))


def shade(owner: Tensor, table: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    """Colours every pixel with the surface of its owner.

    Args:
        owner: [B, H, W] int64 rows of ``table``.
        table: [B, rows, len(SURFACE)].
        coarse: [B, H, W] slow noise.
        fine: [B, H, W] quick noise.

    Returns:
        [B, 3, H, W] linear in 0…1, not clamped.
    """
    batch, height, width = owner.shape
    rows = owner.flatten(1)

    def field(column: int) -> Tensor:
        return table[..., column].gather(1, rows).view(batch, height, width)

    inverse_radius = 1 / field(15)
    x = torch.arange(width, device=owner.device)[None, None, :] + 0.5 - field(13)
    y = torch.arange(height, device=owner.device)[None, :, None] + 0.5 - field(14)
    wave_x, wave_y, phase = field(7), field(8), field(9)
    along = x * wave_x + y * wave_y + phase
    across = y * wave_x - x * wave_y + phase
    x, y = x * inverse_radius, y * inverse_radius
    light = x * field(10) + y * field(11)
    light = 1 + (light - field(12) * ((x * x + y * y) - 0.5)).clamp_(-0.45, 0.45)
    pattern = field(6)
    wave = along.sin()
    mixture = (0.5 + 0.4 * x + 0.2 * y) * (pattern == GRADIENT)
    mixture += (0.5 + 1.5 * wave) * (pattern == STRIPES)
    mixture += (0.5 + 4 * wave * across.sin()) * (pattern == CHECKERS)
    mixture += (0.5 + 1.2 * coarse) * (pattern == CLOUDS)
    mixture += (fine * 4 - 1.5) * (pattern == SPECKLES)
    mixture = mixture.clamp_(0, 1)
    channels = []
    for channel in range(3):
        first, second = field(channel), field(3 + channel)
        channels.append((first + (second - first) * mixture) * light)
    return torch.stack(channels, dim=1)


def blur(picture: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of [B, 3, H, W] by [B] pixels (at most 2), separable, edges replicated."""
    batch, channels, height, width = picture.shape
    taps = torch.arange(-4, 5, device=picture.device)
    kernel = torch.exp(-0.5 * (taps[None] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = picture.reshape(1, batch * channels, height, width)
    flat = F.pad(flat, (4, 4, 0, 0), mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=batch * channels)
    flat = F.pad(flat, (0, 0, 4, 4), mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=batch * channels)
    return flat.view(picture.shape)


def jpeg(picture: Tensor, quality: Tensor) -> Tensor:
    """The artefacts of JPEG at [B] qualities (1…100): quantised 8 × 8 DCT of [B, 3, H, W] 0…1."""
    device = picture.device
    k = torch.arange(8, device=device, dtype=torch.float32)
    dct = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) * 0.5
    dct[0] *= math.sqrt(0.5)
    ycc = torch.tensor(_YCC, device=device)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    tables = torch.tensor([_LUMA, _CHROMA, _CHROMA], dtype=torch.float32, device=device)
    steps = (tables.view(1, 3, 1, 8, 1, 8) * scale.view(-1, 1, 1, 1, 1, 1)).clamp_min(1)
    batch, _, height, width = picture.shape
    planes = torch.einsum("dc,bchw->bdhw", ycc, picture) * 255
    blocks = planes.view(batch, 3, height // 8, 8, width // 8, 8)
    spectrum = torch.einsum("ui,bcyixj,vj->bcyuxv", dct, blocks, dct)
    spectrum = (spectrum / steps).round_() * steps
    planes = torch.einsum("ui,bcyuxv,vj->bcyixj", dct, spectrum, dct).reshape(picture.shape)
    return torch.einsum("cd,bdhw->bchw", torch.linalg.inv(ycc.cpu()).to(device), planes) / 255


def photograph(picture: Tensor, random: SceneRandom, size: int) -> Tensor:
    """Exposure, blur, sensor noise and, for half of the scenes, JPEG.

    Args:
        picture: [B, 3, H, W] float 0…1.
        random: streams on the CPU for the settings.
        size: side of the picture, pixels.

    Returns:
        [B, 3, H, W] uint8.
    """
    device = picture.device

    def setting(low: float, high: float) -> Tensor:
        return random.uniform(low, high, 1).to(device).view(-1, 1, 1, 1)

    picture = picture * setting(0.75, 1.2) + setting(-0.08, 0.08)
    picture = picture.clamp_(0, 1) ** setting(0.8, 1.25)
    # Outlines are drawn hard: the least blur stands for the lens, and removes the staircase.
    picture = blur(picture, random.uniform(0.6, 1.7, 1).to(device).flatten())
    grain = SceneRandom(0, random.keys.to(device)).lattice(2, size, size).sub_(0.5)
    luminance, colour = setting(0, 0.12), setting(0, 0.06)
    picture = picture + grain[:, :1] * luminance
    picture[:, 0::2] += grain[:, 1:] * colour
    picture = picture.clamp_(0, 1)
    compressed = random.chance(0.5, 1).to(device).view(-1, 1, 1, 1)
    picture = torch.where(
        compressed, jpeg(picture, random.uniform(35, 95, 1).to(device).flatten()), picture
    )
    return picture.clamp_(0, 1).mul_(255).round_().to(torch.uint8)

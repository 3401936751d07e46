"""What stands where in a scene, before a pixel exists."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samtrt.scenes import shapes
from samtrt.scenes.randomness import SceneRandom
from samtrt.scenes.textures import surfaces

OBJECTS = 16
PARTS = 2  # of one object, at most
STRIDE = 1 + PARTS  # slots of one object: itself, then its parts
SLOTS = OBJECTS * STRIDE
SHADOWS = 6  # in one scene, at most

POLYGON, ELLIPSE, SPLINE, CURVE, TEXT, CUT = range(6)
KIND_NAMES = ("polygon", "ellipse", "blob", "curve", "text", "cut", "ring", "background")
RING, GROUND = 6, 7


@dataclass
class Layout:
    """Everything drawn before a pixel exists; tensors [B, SLOTS, …] on the CPU, lengths in pixels.

    Attributes:
        kind: int64; one of POLYGON … CUT.
        active: bool.
        ring: bool, only the rim is filled.
        centre: [.., 2] (x, y).
        radius: half the extent along the longer axis.
        rotation: radians.
        points: [.., POLYGON_POINTS, 2] polygon vertices or, in the first four, Bézier controls.
        radii: [.., SPLINE_POINTS] of the blob.
        half_axes: [.., 2] of the ellipse or the text.
        exponent: of the superellipse.
        half_width: of the stroke or, for a ring, its thickness.
        word: int64 index into ``shapes.WORDS``.
        shadow: [B, OBJECTS, 4]: strength (0 = none), x, y, softness.
        table: [B, 1 + SLOTS, len(SURFACE)].
        extent: [B, 2] (height, width) of the picture inside the square.
    """

    kind: Tensor
    active: Tensor
    ring: Tensor
    centre: Tensor
    radius: Tensor
    rotation: Tensor
    points: Tensor
    radii: Tensor
    half_axes: Tensor
    exponent: Tensor
    half_width: Tensor
    word: Tensor
    shadow: Tensor
    table: Tensor
    extent: Tensor


def sample_layout(random: SceneRandom, size: int) -> Layout:
    """Draws what stands where, for each scene of ``random`` (on the CPU)."""
    scale = size / 1024
    batch = len(random.keys)
    count = random.integers(5, OBJECTS + 1, 1)
    long_side = torch.full((batch, 1), size)
    short_side = (random.uniform(0.55, 1, 1) * size).long()
    square, upright = random.chance(0.55, 1), random.chance(0.5, 1)
    extent = torch.cat(
        [
            torch.where(square | upright, long_side, short_side),
            torch.where(square | ~upright, long_side, short_side),
        ],
        dim=1,
    )

    # Larger objects tend to stand behind smaller ones.
    radius = random.log_uniform(48, 270, OBJECTS) * (9 / count.clamp_min(7)) ** 0.3
    radius = radius.sort(dim=1, descending=True).values * random.uniform(0.75, 1.3, OBJECTS)
    centre = _scatter(random, radius * scale, extent.flip(1))
    # The first slots are the largest: leave out a random subset, not the smallest ones.
    active = random.lattice(OBJECTS).argsort(1).argsort(1) < count
    draw = random.lattice(OBJECTS)
    kind = torch.bucketize(draw, torch.tensor([0.3, 0.52, 0.76, 0.88]))
    kind = torch.where((kind == TEXT) & (radius < 80), POLYGON, kind)
    kind = torch.where((kind == CURVE) & (radius < 60), ELLIPSE, kind)
    ring = random.chance(0.16, OBJECTS) & (kind <= SPLINE) & (radius > 70)
    divided = random.chance(0.3, OBJECTS) & (kind <= SPLINE) & ~ring & (radius > 85)

    def slots(per_object: Tensor) -> Tensor:
        """[B, OBJECTS, …] → [B, SLOTS, …]: parts start as copies of their object."""
        return per_object.repeat_interleave(STRIDE, dim=1)

    is_part = (torch.arange(SLOTS) % STRIDE > 0).expand(batch, SLOTS)
    cut = is_part & random.chance(0.45, SLOTS)
    has_part = random.chance(0.5, SLOTS) | (torch.arange(SLOTS) % STRIDE == 1)
    all_active = slots(active) & (~is_part | slots(divided) & has_part)
    part_kind = torch.where(cut, CUT, random.integers(POLYGON, SPLINE + 1, SLOTS))
    part_radius = slots(radius) * random.uniform(0.28, 0.45, SLOTS)
    all_radius = torch.where(is_part, part_radius, slots(radius)) * scale
    away = random.uniform(0, 2 * math.pi, SLOTS)
    shift = random.uniform(0.25, 0.6, SLOTS) * slots(radius) * scale
    offset = torch.stack([away.cos(), away.sin()], -1) * (shift * is_part)[..., None]
    all_kind = torch.where(is_part, part_kind, slots(kind))

    half_axes, points, half_width, word = _outlines(random, all_kind, all_radius, scale)
    all_ring = slots(ring) & ~is_part
    rim = half_axes.amin(-1) * random.uniform(0.3, 0.5, SLOTS)
    shadow_angle = random.uniform(0, 2 * math.pi, 1) + random.uniform(-0.3, 0.3, OBJECTS)
    reach = random.uniform(0.05, 0.16, OBJECTS) * radius * scale
    has_shadow = random.chance(0.4, OBJECTS) & active
    has_shadow &= has_shadow.cumsum(1) <= SHADOWS
    # A word's field reaches a few pixels only, and so does its penumbra.
    softness = random.log_uniform(3, 20, OBJECTS)
    softness = torch.where(kind == TEXT, 0.8, softness)
    shadow = torch.stack(
        [
            random.uniform(0.2, 0.6, OBJECTS) * has_shadow,
            shadow_angle.cos() * reach,
            shadow_angle.sin() * reach,
            softness * scale,
        ],
        dim=-1,
    )
    all_centre = slots(centre) + offset
    return Layout(
        kind=all_kind,
        active=all_active,
        ring=all_ring,
        centre=all_centre,
        radius=all_radius,
        rotation=torch.where(cut, away, random.uniform(0, 2 * math.pi, SLOTS)),
        points=points,
        radii=all_radius[..., None] * random.uniform(0.5, 1.1, SLOTS, shapes.SPLINE_POINTS),
        half_axes=half_axes,
        exponent=torch.where(
            random.chance(0.5, SLOTS),
            torch.tensor(2.0),
            random.uniform(2.5, 9, SLOTS),
        ),
        half_width=torch.where(all_ring, rim, half_width),
        word=word,
        shadow=shadow,
        table=_paint(random, all_centre, all_radius, is_part, extent, size),
        extent=extent,
    )


def _scatter(random: SceneRandom, radius: Tensor, area: Tensor) -> Tensor:
    """[B, OBJECTS, 2] centres: of three draws each, the one that overlaps earlier ones least."""
    candidates = random.lattice(OBJECTS, 3, 2) * area[:, None, None, :]
    centre = candidates[:, :, 0].clone()
    for index in range(1, OBJECTS):
        distance = (candidates[:, index, :, None] - centre[:, None, :index]).norm(dim=-1)
        room = distance / (radius[:, None, index, None] + radius[:, None, :index])
        best = room.amin(-1).clamp(max=0.9).argmax(1)
        centre[:, index] = candidates[torch.arange(len(centre)), index, best]
    return centre


def _outlines(
    random: SceneRandom, kind: Tensor, radius: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half axes, points, half widths and words of ``Layout``."""
    aspect = random.uniform(0.4, 1, SLOTS)
    axes = torch.stack([radius, radius * aspect], dim=-1)
    word = random.integers(0, len(shapes.WORDS), SLOTS)
    tall = shapes.glyph_aspects()[word].sqrt()
    text = 0.8 * radius[..., None] * torch.stack([tall, 1 / tall], dim=-1)
    half_axes = torch.where((kind == TEXT)[..., None], text, axes)

    corners = random.integers(3, shapes.POLYGON_POINTS + 1, SLOTS)[..., None]
    vertex = torch.arange(shapes.POLYGON_POINTS)
    vertex = torch.minimum(vertex, corners - 1)
    jitter = random.uniform(-0.2, 0.2, SLOTS, shapes.POLYGON_POINTS).gather(-1, vertex)
    angle = (vertex + jitter) * (2 * math.pi / corners)
    uneven = random.lattice(SLOTS, shapes.POLYGON_POINTS).gather(-1, vertex)
    reach = 1 - uneven * random.uniform(0, 0.5, SLOTS, 1)
    star = random.chance(0.2, SLOTS, 1) & (corners % 2 == 0) & (corners >= 6)
    reach = torch.where(star & (vertex % 2 == 1), reach * 0.5, reach)
    polygon = torch.stack([angle.cos() * reach, angle.sin() * reach], dim=-1) * axes[:, :, None]

    turn = random.uniform(0, 2 * math.pi, SLOTS)
    along = torch.stack([turn.cos(), turn.sin()], -1)[:, :, None]
    normal = torch.stack([-turn.sin(), turn.cos()], -1)[:, :, None]
    bend = random.uniform(-1, 1, SLOTS, 4, 1)
    curve = along * torch.tensor([-1.2, -0.4, 0.4, 1.2])[:, None] + normal * bend
    curve = curve * radius[:, :, None, None]
    points = polygon.clone()
    points[:, :, :4] = torch.where((kind == CURVE)[..., None, None], curve, polygon[:, :, :4])
    half_width = random.log_uniform(8, 22, SLOTS) * scale
    return half_axes, points, half_width, word


def _paint(
    random: SceneRandom, centre: Tensor, radius: Tensor, is_part: Tensor, extent: Tensor, size: int
) -> Tensor:
    """[B, 1 + SLOTS, len(SURFACE)]: one surface an object; parts in shades of their object's."""
    objects = surfaces(random, 1 + OBJECTS, size)
    table = torch.cat([objects[:, :1], objects[:, 1:].repeat_interleave(STRIDE, dim=1)], dim=1)
    tint = random.uniform(0.0, 1.0, SLOTS, 3)
    level = torch.where(
        random.chance(0.5, SLOTS),
        random.uniform(0.45, 0.75, SLOTS),
        random.uniform(1.3, 1.8, SLOTS),
    )
    for first in (0, 3):
        own = table[:, 1:, first : first + 3]
        shaded = (own * level[..., None]).clamp(0.03, 1) * 0.75 + tint * 0.25
        table[:, 1:, first : first + 3] = torch.where(is_part[..., None], shaded, own)
    # The ground is lit across the whole picture.
    table[:, 0, 13:15] = extent.flip(1) / 2
    table[:, 0, 15] = 0.75 * size
    whole_centre, whole_radius = centre[:, ::STRIDE], radius[:, ::STRIDE]
    table[:, 1:, 13:15] = whole_centre.repeat_interleave(STRIDE, dim=1)
    table[:, 1:, 15] = whole_radius.repeat_interleave(STRIDE, dim=1)
    return table

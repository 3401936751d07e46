"""Procedural pictures with exact masks: what the demo checkpoint learns from, and is judged on.

A scene holds 5 to 16 objects on a textured ground, later ones over earlier ones. An object may
have parts (patches, or a cut that splits it), painted in its own colours: a click on a part means
the part or the whole, which is the ambiguity that SAM's three masks are for.

Scene ``index`` of ``seed`` is a pure function of both, whatever the batch; devices agree up to
the rounding of float32 at outlines.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samtrt.scenes import shapes
from samtrt.scenes.layout import (
    CURVE,
    CUT,
    ELLIPSE,
    GROUND,
    KIND_NAMES,
    OBJECTS,
    PARTS,
    POLYGON,
    RING,
    SHADOWS,
    SLOTS,
    STRIDE,
    TEXT,
    Layout,
    sample_layout,
)
from samtrt.scenes.randomness import SceneRandom
from samtrt.scenes.shapes import Window
from samtrt.scenes.textures import clouds, photograph, shade

BACKGROUND, PADDING = 0, 255  # owners that are no slot
MIN_AREA = 1600  # visible pixels of a mask, at 1024²
MIN_VISIBLE = 0.35  # of its outline


@dataclass
class SceneBatch:
    """Pictures and who owns each pixel.

    Attributes:
        images: [B, 3, S, S] uint8 RGB; zero outside the extent.
        owner: [B, S, S] uint8: BACKGROUND, PADDING, or 1 + slot.
        extent: [B, 2] int64 (height, width), on the CPU.
        valid: [B, SLOTS + 1] bool: slots whose mask is large and visible enough to be asked for;
            the last entry is the background.
        kind: [B, SLOTS + 1] int64 indices into ``KIND_NAMES``, on the CPU.
    """

    images: Tensor
    owner: Tensor
    extent: Tensor
    valid: Tensor
    kind: Tensor

    def coverage(self) -> Tensor:
        """[B, SLOTS + 1, S/4, S/4] float16 share of each 4 × 4 cell that a mask covers."""
        return _coverage(self.owner)

    def mask(self, scene: int, entry: int) -> Tensor:
        """[height, width] bool mask of one entry of ``valid``, exact at pixel centres."""
        height, width = self.extent[scene].tolist()
        owner = self.owner[scene, :height, :width]
        if entry == SLOTS:
            return owner == BACKGROUND
        first, last = mask_owners(entry)
        return (owner >= first) & (owner <= last)


def mask_owners(slot: int) -> tuple[int, int]:
    """First and last owner in a slot's mask: an object's includes its parts'."""
    return slot + 1, slot + 1 + (PARTS if slot % STRIDE == 0 else 0)


def _coverage(owner: Tensor) -> Tensor:
    batch, size, _ = owner.shape
    cells = owner.view(batch, size // 4, 4, size // 4, 4)
    output = torch.empty(
        batch, SLOTS + 1, size // 4, size // 4, dtype=torch.float16, device=owner.device
    )
    for entry in range(SLOTS):
        first, last = mask_owners(entry)
        inside = (cells >= first) & (cells <= last) if last > first else cells == first
        output[:, entry] = inside.sum((2, 4), dtype=torch.uint8)
    output[:, SLOTS] = (cells == BACKGROUND).sum((2, 4), dtype=torch.uint8)
    return output.div_(16)


def _windows(
    ids: Tensor, centre: Tensor, reach: Tensor, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Window]]:
    """Which shapes to draw together, and where: all at once on a GPU, else each in its box."""
    if device.type != "cpu":
        for chunk in ids.split(64):
            yield chunk, Window(0, 0, size, size)
        return
    for index in ids.tolist():
        x, y = centre[index].tolist()
        radius = float(reach[index]) + 2
        left, top = max(0, math.floor(x - radius)), max(0, math.floor(y - radius))
        right, bottom = min(size, math.ceil(x + radius)), min(size, math.ceil(y + radius))
        if right > left and bottom > top:
            yield torch.tensor([index]), Window(top, left, bottom - top, right - left)


class _Painter:
    """Draws the fields of chosen shapes of a layout on one device."""

    def __init__(self, layout: Layout, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.kind = layout.kind.flatten()
        self.reach = layout.radius.flatten() * 1.6
        self.reach = torch.where(
            self.kind == CURVE, self.reach + layout.half_width.flatten(), self.reach
        )
        self.reach = torch.where(
            self.kind == TEXT, layout.half_axes.flatten(0, 1).norm(dim=-1), self.reach
        )
        self.reach = torch.where(self.kind == CUT, layout.radius.flatten() * 5, self.reach)
        self.centre = layout.centre.flatten(0, 1)
        self.fields = {
            name: getattr(layout, name).flatten(0, 1).to(device, non_blocking=True)
            for name in (
                *("kind", "ring", "centre", "rotation", "points", "radii", "half_axes"),
                *("exponent", "half_width", "word"),
            )
        }

    def draw(
        self, ids: Tensor, shift: Tensor | None = None, margin: float = 0
    ) -> Iterator[tuple[Tensor, Window, Tensor]]:
        """Yields (ids, window, field [M, H, W]) of flat slot ids, moved by ``shift`` [.., 2].

        The window reaches ``margin`` pixels beyond the outline.
        """
        kinds = self.kind[ids]
        centre = self.centre if shift is None else self.centre + shift.flatten(0, 1)
        on_device = centre.to(self.device)
        for kind in range(CUT + 1):
            chosen = ids[kinds == kind]
            if not len(chosen):
                continue
            for part, window in _windows(
                chosen, centre, self.reach + margin, self.size, self.device
            ):
                where = part.to(self.device)
                yield part, window, self._field(kind, where, on_device[where], window)

    def _field(self, kind: int, ids: Tensor, centre: Tensor, window: Window) -> Tensor:
        value = {name: tensor[ids] for name, tensor in self.fields.items()}
        if kind == CURVE:
            points = shapes.bezier_points(value["points"][:, :4]) + centre[:, None]
            return shapes.curve_field(window, points, value["half_width"])
        if kind == TEXT:
            return shapes.text_field(
                window, centre, value["word"], value["half_axes"], value["rotation"]
            )
        if kind == CUT:
            x, y = window.offsets(centre)
            angle = value["rotation"][:, None, None]
            return -(x * angle.cos() + y * angle.sin())
        if kind == POLYGON:
            outline = shapes.polygon_outline(value["points"])
        elif kind == ELLIPSE:
            outline = shapes.ellipse_outline(value["half_axes"], value["exponent"])
        else:
            outline = shapes.spline_outline(value["radii"])
        field = shapes.radial_field(window, centre, outline, value["rotation"])
        rim = torch.where(value["ring"], value["half_width"], torch.inf)
        return shapes.ring_field(field, rim)


def generate(
    seed: int, indices: Tensor | list[int], size: int = 1024, device: str | torch.device = "cpu"
) -> SceneBatch:
    """Draws scenes.

    Args:
        seed: the data set.
        indices: [B] which scenes of it.
        size: side of the square, pixels, a multiple of 8; all lengths scale with it.
        device: where to draw; the result lies there.
    """
    device = torch.device(device)
    indices = torch.as_tensor(indices, dtype=torch.int64)
    random = SceneRandom(seed, indices)
    layout = sample_layout(random, size)
    batch = len(indices)
    painter = _Painter(layout, size, device)

    # inside[b, s] holds s + 1 where slot s would be seen if nothing stood before it.
    inside = torch.zeros(batch, SLOTS, size, size, dtype=torch.uint8, device=device)
    flat = inside.view(batch * SLOTS, size, size)
    for ids, window, field in painter.draw(layout.active.flatten().nonzero()[:, 0]):
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        where = ids.to(device)
        label = (where % SLOTS + 1).to(torch.uint8)[:, None, None]
        flat[where, rows, columns] = (field < 0) * label
    families = inside.view(batch, OBJECTS, STRIDE, size, size)
    families[:, :, 1:] *= families[:, :, :1] > 0
    owner = inside.amax(1)
    outlined = (inside > 0).sum((2, 3)).float()
    del inside, flat, families

    extent = layout.extent
    line = torch.arange(size)
    outside = (line >= extent[:, :1])[:, :, None] | (line >= extent[:, 1:])[:, None, :]
    outside = outside.to(device)

    keys = SceneRandom(seed, indices.to(device) + 0x5EED)
    coarse = clouds(keys, size, (3, 7, 15, 31))
    fine = clouds(keys, size, (64 * size // 1024 + 2, 200 * size // 1024 + 2))
    picture = shade(owner.long(), layout.table.to(device), coarse, fine)
    # Grounds are never quite even.
    picture += (coarse * 0.12 + fine * 0.05)[:, None] * (owner == BACKGROUND)[:, None]
    picture *= _shadows(layout, painter, owner)[:, None]
    images = photograph(picture, random, size)
    images.masked_fill_(outside[:, None], 0)
    owner.masked_fill_(outside, PADDING)

    counts = torch.zeros(batch, 256, dtype=torch.int64, device=device)
    flat_owner = owner.flatten(1).long()
    counts.scatter_add_(1, flat_owner, torch.ones_like(flat_owner))
    areas = counts[:, 1 : SLOTS + 1].float()
    family = areas.view(batch, OBJECTS, STRIDE)
    family[:, :, 0] = family.sum(2)
    least = MIN_AREA * (size / 1024) ** 2
    valid = (areas >= least) & (areas >= MIN_VISIBLE * outlined)
    # A part that fills its object is no part, and neither shows.
    shown = valid.view(batch, OBJECTS, STRIDE)
    shown[:, :, 1:] &= (family[:, :, 1:] < 0.8 * family[:, :, :1]) & shown[:, :, :1]
    valid = torch.cat([valid, (counts[:, :1] >= least)], dim=1)
    kind = torch.where(layout.ring, RING, layout.kind)
    kind = torch.cat([kind, torch.full((batch, 1), GROUND)], dim=1)
    return SceneBatch(images, owner, extent, valid, kind)


def _shadows(layout: Layout, painter: _Painter, owner: Tensor) -> Tensor:
    """[B, S, S] factors by which shadows darken what lies behind their objects."""
    light = torch.ones(owner.shape, device=owner.device)
    cast = layout.shadow[..., 0] > 0
    rank = cast.cumsum(1)
    shift = layout.shadow[..., 1:3].repeat_interleave(STRIDE, dim=1)
    for turn in range(1, SHADOWS + 1):  # one a scene each time: no two write the same pixels
        scene, index = (cast & (rank == turn)).nonzero(as_tuple=True)
        ids = scene * SLOTS + index * STRIDE
        for part, window, field in painter.draw(ids, shift, margin=6 * 20 * owner.shape[-1] / 1024):
            where = (part // SLOTS).to(owner.device)
            slot = part % SLOTS
            strength, softness = (
                layout.shadow[part // SLOTS, slot // STRIDE, column].to(owner.device)[:, None, None]
                for column in (0, 3)
            )
            rows = slice(window.top, window.top + window.height)
            columns = slice(window.left, window.left + window.width)
            behind = owner[where, rows, columns] < (slot + 1).to(owner.device)[:, None, None]
            dark = strength * torch.sigmoid(field / -softness) * behind
            light[where, rows, columns] *= 1 - dark
    return light


def examples(
    seed: int, count: int, size: int = 1024, device: str | torch.device = "cpu"
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Yields scenes 0 … count − 1 of a seed, for evaluation; the background is not asked for.

    Yields:
        image: [H, W, 3] uint8 RGB, cropped to the scene's extent.
        masks: [K, H, W] bool.
        groups: K names: "part", or one of ``KIND_NAMES``.
    """
    for index in range(count):
        scenes = generate(seed, [index], size, device)
        height, width = scenes.extent[0].tolist()
        entries = scenes.valid[0, :SLOTS].nonzero()[:, 0].tolist()
        masks = [scenes.mask(0, entry).cpu().numpy() for entry in entries]
        yield (
            scenes.images[0, :, :height, :width].permute(1, 2, 0).cpu().numpy(),
            np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool),
            [
                "part" if entry % STRIDE else KIND_NAMES[int(scenes.kind[0, entry])]
                for entry in entries
            ],
        )

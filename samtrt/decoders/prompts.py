"""What is asked about a picture, checked and mapped into the model's frame: the only place.

``Prompt`` is one object in a picture's own pixels, as a console or a request has it; ``Prompts``
is a batch in the model's frame, as every decoder takes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError
from samtrt.modeling.prompt_encoder import (
    LABEL_BACKGROUND,
    LABEL_BOX_BOTTOM_RIGHT,
    LABEL_BOX_TOP_LEFT,
    LABEL_FOREGROUND,
    LABEL_PADDING,
    prompt_points,
)
from samtrt.pictures.transforms import ResizeLongestSide, Size


@dataclass(frozen=True, eq=False)
class Prompts:
    """B prompts for one picture, in pixels of the model's frame.

    A box is two of the points, and points without a box end with a padding point
    (``prompt_encoder.prompt_points`` makes both). The values are checked by the constructors
    ``from_arrays`` and ``from_tensors``; the shapes always.

    Attributes:
        coords: [B, N, 2] float32 (x, y); N may be 0.
        labels: [B, N] float32: −1 padding, 0 background, 1 foreground, 2 and 3 a box's corners.
        mask_input: [B, 1, 4h, 4w] float32 logits of an earlier answer, or None.

    Raises:
        InputError: shapes that do not fit each other.
    """

    coords: Tensor
    labels: Tensor
    mask_input: Tensor | None = None

    def __post_init__(self) -> None:
        coords, labels, mask = self.coords, self.labels, self.mask_input
        if coords.ndim != 3 or coords.shape[2] != 2 or labels.shape != coords.shape[:2]:
            raise InputError(
                f"point_coords {list(coords.shape)} and point_labels {list(labels.shape)} do not "
                "fit; expected [B, N, 2] and [B, N]"
            )
        if mask is not None and (mask.ndim != 4 or mask.shape[:2] != (len(coords), 1)):
            raise InputError(
                f"mask_input has shape {list(mask.shape)}, expected [{len(coords)}, 1, 4h, 4w]: "
                "one for each prompt"
            )

    def __len__(self) -> int:
        return len(self.coords)

    def split(self, size: int) -> "Iterator[Prompts]":
        """Parts of at most ``size`` prompts, in order."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            mask = None if self.mask_input is None else self.mask_input[part]
            yield Prompts(self.coords[part], self.labels[part], mask)

    @staticmethod
    def batches(prompts: "Sequence[Prompts]") -> "Iterator[tuple[list[int], Prompts]]":
        """Joins prompts on one picture into the fewest batches that give the same masks.

        Only prompts of as many points go together, and with or without masks: a point that pads
        takes part in the decoder's attention, and would change the masks.

        Returns:
            Each batch, and which of ``prompts`` its rows are; each of those must be of B = 1.
        """
        alike: dict[tuple[int, bool], list[int]] = {}
        for number, one in enumerate(prompts):
            alike.setdefault((one.coords.shape[1], one.mask_input is None), []).append(number)
        for numbers in alike.values():
            parts = [prompts[number] for number in numbers]
            masks = [part.mask_input for part in parts if part.mask_input is not None]
            yield (
                numbers,
                Prompts(
                    torch.cat([part.coords for part in parts]),
                    torch.cat([part.labels for part in parts]),
                    torch.cat(masks) if masks else None,
                ),
            )

    def to(self, device: torch.device | str) -> "Prompts":
        """The same on another device."""
        mask = None if self.mask_input is None else self.mask_input.to(device)
        return Prompts(self.coords.to(device), self.labels.to(device), mask)

    def points_and_boxes(self) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """The prompts as they were given: coords [B, N, 2] with labels [B, N], and boxes [B, 4].

        Waits for the device.
        """
        coords, labels = self.coords, self.labels
        if not coords.shape[1]:
            return None, None
        corners = labels.new_tensor((LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT))
        if labels.shape[1] > 1 and bool((labels[:, -2:] == corners).all()):
            boxes = coords[:, -2:].reshape(-1, 4)
            points = (coords[:, :-2], labels[:, :-2]) if coords.shape[1] > 2 else None
            return points, boxes
        return (coords[:, :-1], labels[:, :-1]), None  # without the padding point

    @classmethod
    def from_arrays(
        cls,
        picture: EmbeddedPicture,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
    ) -> "Prompts":
        """One prompt in pixels of the picture, as ``SamPredictor.predict`` takes it.

        Args:
            picture: the picture that it is about.
            point_coords: [N, 2] (x, y); N may be 0. An array, a tensor on any device, or a list.
            point_labels: [N]: 1 foreground, 0 background, −1 a point that does not count.
            box: [4] or [1, 4]: x0, y0, x1, y1.
            mask_input: [1, 4h, 4w] logits.

        Raises:
            InputError: other shapes, labels or types, numbers that are not finite, or points
                without labels or labels without points.
        """
        transform = ResizeLongestSide(picture.img_size)
        given: dict[str, np.ndarray | Tensor] = {}
        if point_coords is not None:
            array = _array("point_coords", point_coords)
            if point_labels is None:
                raise _points_without_labels()
            labels = _array("point_labels", point_labels)
            if array.ndim != 2 or array.shape[1] != 2 or labels.shape != array.shape[:1]:
                raise InputError(
                    f"point_coords {list(array.shape)} and point_labels {list(labels.shape)} do "
                    "not fit; expected [N, 2] and [N]"
                )
            coords = transform.apply_coords(array, picture.original_size)
            given["point_coords"] = _float32(coords)[None]
            given["point_labels"] = _float32(labels)[None]
        elif point_labels is not None:
            raise _labels_without_points()
        if box is not None:
            array = _array("box", box)
            if array.shape not in ((4,), (1, 4)):
                raise InputError(
                    f"box has shape {list(array.shape)}, expected [4] (x0, y0, x1, y1); "
                    "several boxes at once go to predict_torch"
                )
            given["boxes"] = _float32(transform.apply_boxes(array, picture.original_size))
        if mask_input is not None:
            array = _array("mask_input", mask_input)
            side = picture.mask_side
            if array.shape != (1, side, side):
                raise InputError(
                    f"mask_input has shape {list(array.shape)}, expected [1, {side}, {side}]: one "
                    "mask of the low resolution logits that an earlier call returned"
                )
            given["mask_input"] = torch.from_numpy(_float32(array))[None]
        return cls._checked(picture, given)

    @classmethod
    def from_tensors(
        cls,
        picture: EmbeddedPicture,
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
    ) -> "Prompts":
        """A batch in the model's frame, as ``SamPredictor.predict_torch`` takes it.

        All parts have the same B, which may be 0; one mask alone is shared by all prompts, as in
        Meta's code. Without points, boxes and masks it is one prompt that asks for nothing.

        Args:
            picture: the picture that it is about.
            point_coords: [B, N, 2] (x, y), any real dtype; N may be 0.
            point_labels: [B, N]: 1 foreground, 0 background, −1 a point that does not count.
            boxes: [B, 4]: x0, y0, x1, y1.
            mask_input: [B, 1, 4h, 4w] logits, or [1, 1, 4h, 4w].

        Raises:
            InputError: other shapes, labels or types, numbers that are not finite, or points
                without labels or labels without points.
        """
        if point_coords is None and point_labels is not None:
            raise _labels_without_points()
        if point_coords is not None and point_labels is None:
            raise _points_without_labels()
        given = {
            "point_coords": point_coords,
            "point_labels": point_labels,
            "boxes": boxes,
            "mask_input": mask_input,
        }
        return cls._checked(
            picture,
            {name: _numbers(name, value) for name, value in given.items() if value is not None},
        )

    @classmethod
    def _checked(
        cls, picture: EmbeddedPicture, given: "dict[str, np.ndarray | Tensor]"
    ) -> "Prompts":
        """Float32 parts of a batch: points and boxes in host memory, where looking at a few numbers
        takes no launches; masks where they are."""
        side = picture.mask_side
        shapes = {
            "point_coords": ("B", "N", 2),
            "point_labels": ("B", "N"),
            "boxes": ("B", 4),
            "mask_input": ("B", 1, side, side),
        }
        for name, part in given.items():
            _check_shape(name, part, shapes[name])
        if points_are_given := "point_coords" in given:
            found, labelled = given["point_coords"].shape, given["point_labels"].shape
            if found[:2] != labelled:
                raise InputError(
                    f"point_coords {list(found)} and point_labels {list(labelled)} do not fit; "
                    "expected [B, N, 2] and [B, N]"
                )
        batch = _batch({name: len(part) for name, part in given.items()})
        for name, part in given.items():
            _check_values(name, part)

        tensors = {
            name: part if isinstance(part, Tensor) else torch.from_numpy(part)
            for name, part in given.items()
        }
        points = (tensors["point_coords"], tensors["point_labels"]) if points_are_given else None
        coords, labels = prompt_points(points, tensors.get("boxes"))
        if coords is None or labels is None:
            coords = torch.empty(batch, 0, 2, dtype=torch.float32, device="cpu")
            labels = torch.empty(batch, 0, dtype=torch.float32, device="cpu")
        mask = tensors.get("mask_input")
        return cls(coords, labels, None if mask is None else mask.expand(batch, -1, -1, -1))


@dataclass(frozen=True)
class Prompt:
    """Points and a box on one picture, in its own pixels; together they ask for one object.

    Attributes:
        point_coords: (x, y) of each point.
        point_labels: 1 for foreground, 0 for background, one for each point.
        box: (x0, y0, x1, y1), or None.
        mask_input: [1, 4h, 4w] logits of an earlier answer, or None.

    Raises:
        InputError: neither point nor box nor mask, labels that do not fit the points, or a box
            without area.
    """

    point_coords: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask_input: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        points, labels = len(self.point_coords), len(self.point_labels)
        if points != labels:
            raise InputError(
                f"{points} points and {labels} labels; expected one label for each point, "
                "1 for foreground or 0 for background"
            )
        for label in self.point_labels:
            if label not in (LABEL_BACKGROUND, LABEL_FOREGROUND):
                raise InputError(
                    f"a point has the label {label}; expected 1 for foreground or 0 for background"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x0 < x1 and y0 < y1):
                raise InputError(
                    f"the box {x0:g} {y0:g} {x1:g} {y1:g} has no area; expected x0 y0 x1 y1 with "
                    "x0 < x1 and y0 < y1"
                )
        elif not points and self.mask_input is None:
            raise InputError("nothing is asked for; give at least one point, or a box")

    @classmethod
    def from_numbers(
        cls,
        point_coords: Sequence[float] = (),
        point_labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        mask_input: np.ndarray | None = None,
    ) -> "Prompt":
        """A prompt from flat lists, as a command line has them.

        Args:
            point_coords: x y x y …
            point_labels: one for each point; None makes all points foreground.
            box: x0 y0 x1 y1, or None.
            mask_input: see ``Prompt``.

        Raises:
            InputError: an odd number of coordinates, or what ``Prompt`` refuses.
        """
        if len(point_coords) % 2:
            raise InputError(
                f"{len(point_coords)} point coordinates; expected x and y for each point"
            )
        points = tuple(zip(point_coords[::2], point_coords[1::2], strict=True))
        labels = (LABEL_FOREGROUND,) * len(points) if point_labels is None else point_labels
        if box is None:
            return cls(points, tuple(labels), None, mask_input)
        x0, y0, x1, y1 = box
        return cls(points, tuple(labels), (x0, y0, x1, y1), mask_input)

    def check_inside(self, size: Size) -> None:
        """Raises ``InputError`` for a point or box outside a picture of (height, width)."""
        height, width = size
        picture = f"the picture has {width}×{height} pixels"
        for x, y in self.point_coords:
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(
                    f"the point {x:g} {y:g} is outside the picture; {picture}, so x is expected "
                    f"in 0…{width - 1} and y in 0…{height - 1}"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
                raise InputError(
                    f"the box {x0:g} {y0:g} {x1:g} {y1:g} reaches outside the picture; {picture}"
                )

    def cut_to(self, size: Size) -> "Prompt":
        """The same with its box cut to a picture of (height, width): detectors' boxes reach out.

        Raises:
            InputError: the whole box is outside.
        """
        if self.box is None:
            return self
        height, width = size
        x0, y0, x1, y1 = self.box
        box = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
        if not (box[0] < box[2] and box[1] < box[3]):
            self.check_inside(size)
        return self if box == self.box else replace(self, box=box)

    def moved(self, right: float, down: float) -> "Prompt":
        """The same by so many pixels elsewhere."""
        points = tuple((x + right, y + down) for x, y in self.point_coords)
        if self.box is None:
            return replace(self, point_coords=points)
        x0, y0, x1, y1 = self.box
        box = (x0 + right, y0 + down, x1 + right, y1 + down)
        return replace(self, point_coords=points, box=box)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around its points and its box."""
        corners = [*self.point_coords]
        if self.box is not None:
            corners += [self.box[:2], self.box[2:]]
        x, y = zip(*corners, strict=True)
        return min(x), min(y), max(x), max(y)

    def to_model_frame(self, picture: EmbeddedPicture) -> Prompts:
        """The same for a decoder.

        Raises:
            InputError: it reaches outside the picture, or what ``Prompts.from_arrays`` refuses.
        """
        self.check_inside(picture.original_size)
        points = labels = None
        if self.point_coords:
            points, labels = np.array(self.point_coords), np.array(self.point_labels)
        return Prompts.from_arrays(picture, points, labels, self.box, self.mask_input)


def _points_without_labels() -> InputError:
    return InputError(
        "point_coords was given without point_labels; give a label for each point, "
        "1 for foreground and 0 for background"
    )


def _labels_without_points() -> InputError:
    return InputError(
        "point_labels was given without point_coords; give the points that they belong to"
    )


def _array(name: str, value: Any) -> np.ndarray:
    """Numbers from whatever holds them: an array, a tensor, a list."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "iufb":
        raise InputError(f"{name} holds {array.dtype}, expected numbers")
    return array


def _float32(array: np.ndarray) -> np.ndarray:
    """Contiguous, whatever strides it has."""
    return np.ascontiguousarray(array, dtype=np.float32)


def _numbers(name: str, value: Any) -> np.ndarray | Tensor:
    """A tensor as float32: a mask where it is, anything smaller in host memory."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is a {type(value).__name__}, expected a torch tensor")
    if value.is_complex() or value.layout != torch.strided:
        raise InputError(f"{name} is a {value.layout} tensor of {value.dtype}, expected numbers")
    value = value.detach().float()
    return value if name == "mask_input" else value.numpy(force=True)


def _check_shape(name: str, part: np.ndarray | Tensor, shape: tuple[int | str, ...]) -> None:
    fits = part.ndim == len(shape) and all(
        isinstance(expected, str) or found == expected
        for found, expected in zip(part.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(map(str, shape))
        raise InputError(f"{name} has shape {list(part.shape)}, expected [{expected}]")


def _batch(sizes: dict[str, int]) -> int:
    """The one batch size of all parts; a single mask goes with any."""
    if len(sizes) > 1 and sizes.get("mask_input") == 1:
        sizes = {name: size for name, size in sizes.items() if name != "mask_input"}
    if len(set(sizes.values())) > 1:
        parts = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise InputError(f"the prompts' batch sizes differ ({parts}); expected one for all")
    return next(iter(sizes.values()), 1)


def _check_values(name: str, part: np.ndarray | Tensor) -> None:
    """Finite numbers and known labels; of a mask on a GPU it waits for the device."""
    if name == "point_labels":
        assert isinstance(part, np.ndarray)
        known = (part == LABEL_PADDING) | (part == LABEL_BACKGROUND) | (part == LABEL_FOREGROUND)
        if not known.all():
            raise InputError(
                f"a point has the label {part[~known][0]:g}; expected 1 for foreground, 0 for "
                "background or -1 for a point that does not count (a box goes into its own "
                "argument)"
            )
    elif not (part.isfinite() if isinstance(part, Tensor) else np.isfinite(part)).all():
        raise InputError(f"{name} holds a number that is not finite")

"""What a user asks about a picture: points and a box, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samtrt.errors import InputError
from samtrt.modeling.prompt_encoder import LABEL_BACKGROUND, LABEL_FOREGROUND, prompt_points
from samtrt.pictures.transforms import IMG_SIZE, ResizeLongestSide, Size


@dataclass(frozen=True)
class Prompt:
    """Points and a box on one picture, in its own pixels; together they ask for one object.

    Attributes:
        point_coords: (x, y) of each point.
        point_labels: 1 for foreground, 0 for background, one for each point.
        box: (x0, y0, x1, y1), or None.

    Raises:
        InputError: no point and no box, labels that do not fit the points, or a box without area.
    """

    point_coords: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None

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
        elif not points:
            raise InputError("nothing is asked for; give at least one point, or a box")

    @classmethod
    def from_numbers(
        cls,
        point_coords: Sequence[float] = (),
        point_labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
    ) -> "Prompt":
        """A prompt from flat lists, as a command line has them.

        Args:
            point_coords: x y x y …
            point_labels: one for each point; None makes all points foreground.
            box: x0 y0 x1 y1, or None.

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
            return cls(points, tuple(labels))
        x0, y0, x1, y1 = box
        return cls(points, tuple(labels), (x0, y0, x1, y1))

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

    def to_model_frame(self, size: Size, img_size: int = IMG_SIZE) -> tuple[Tensor, Tensor]:
        """The one list of labelled points that the mask decoder takes.

        Args:
            size: (height, width) of the picture.

        Returns:
            coords [1, N, 2] in pixels of the model's frame and labels [1, N], float32; see
            ``prompt_encoder.prompt_points``.
        """
        transform = ResizeLongestSide(img_size)
        points = boxes = None
        if self.point_coords:
            mapped = transform.apply_coords(np.array(self.point_coords), size)
            points = (_batch_of_one(mapped), _batch_of_one(np.array(self.point_labels)))
        if self.box is not None:
            boxes = _batch_of_one(transform.apply_boxes(np.array([self.box]), size)[0])
        coords, labels = prompt_points(points, boxes)
        assert coords is not None and labels is not None  # a prompt is never empty
        return coords, labels


def _batch_of_one(values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[None]

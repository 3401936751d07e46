"""Masks as polygons: along the pixels' edges or simplified; with holes, in pieces, as one ring.

A pixel (x, y) covers [x, x + 1] × [y, y + 1], as pycocotools has it: polygons of ``outline``
without simplification give back every pixel. Pixels that touch over a corner alone are apart.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from samtrt.errors import SamtrtError
from samtrt.hints import install_packages
from samtrt.masks.runs import Columns, coco_columns, mask_columns

# A part that simplifying would change by more than this share of its area keeps more corners.
_MOST_CHANGED = 0.1
_MANY_CORNERS = 10_000
_STACK_A_CORNER = 1024  # bytes
_MOST_STACK = 1 << 32
_stack = threading.Lock()  # its size is the process's
_FINEST = 0.25  # pixels; below it a part stays as it is


def require_shapely() -> Any:
    """shapely, or one line on how to get it.

    Raises:
        SamtrtError: it is not installed.
    """
    try:
        import shapely
    except ImportError as error:
        raise SamtrtError(
            "polygons (coco-polygons, geojson, yolo) need shapely, which is not installed; "
            f"run `{install_packages('shapely')}`"
        ) from error
    return shapely


def outline(mask: npt.NDArray[np.bool_], tolerance: float = 0.0) -> list[Any]:
    """The parts of a mask as valid polygons with holes, in pixels.

    Args:
        mask: [H, W].
        tolerance: corners that lie within so many pixels of the line between their neighbours
            are left out (Douglas and Peucker; where a ring begins it may be twice as many). A part
            that would change by more than a tenth of its area keeps more of them. 0 keeps the
            mask exact.

    Returns:
        shapely's polygons, the outer ring counter-clockwise by its numbers; none for an empty mask.
    """
    return _outline(mask_columns(mask), tolerance)


def outline_of(annotation: dict[str, Any], tolerance: float = 0.0) -> list[Any]:
    """``outline`` of an annotation's mask, however large its picture is."""
    return _outline(coco_columns(annotation["segmentation"]), tolerance)


def _outline(columns: Columns, tolerance: float) -> list[Any]:
    shapely = require_shapely()
    x, top, bottom = columns
    stretches = shapely.box(x, top, x + 1, bottom)
    exact = shapely.get_parts(_simplify(shapely.union_all(stretches), 0))
    parts = [_simplified(part, tolerance) for part in exact if not part.is_empty]
    if tolerance and len(parts) > 1:  # neighbours may have come to overlap
        parts = polygons_of(shapely.union_all(parts))
    return [shapely.geometry.polygon.orient(part) for part in parts]


def without_holes(parts: list[Any]) -> list[Any]:
    """The same area in valid polygons without holes: cut down through each hole.

    Formats that have no word for a hole (COCO's polygons, YOLO's) join an object's polygons.
    """
    shapely = require_shapely()
    waiting, whole = list(parts), []
    while waiting:
        part = waiting.pop()
        if not part.interiors:
            whole.append(part)
            continue
        x0, y0, x1, y1 = part.bounds
        x = _cut(part)
        for side in (shapely.box(x0, y0, x, y1), shapely.box(x, y0, x1, y1)):
            waiting += polygons_of(shapely.intersection(part, side))
    return whole[::-1]


def one_ring(pieces: list[Any]) -> npt.NDArray[np.float64]:
    """Polygons without holes as the corners [N, 2] of a single ring, for YOLO.

    It goes from each piece to the next at their nearest corners and comes back the same way, so
    that the bridges have no area.
    """
    rings = [np.asarray(piece.exterior.coords)[:-1] for piece in pieces]
    there, back = [], []
    entered = 0
    for ring, following in pairwise(rings):
        ring = np.concatenate([ring[entered:], ring[: entered + 1]])
        left, entered = _nearest(ring, following)
        there.append(ring[: left + 1])
        back.append(ring[left:])
    last = rings[-1]
    if len(rings) > 1:
        last = np.concatenate([last[entered:], last[: entered + 1]])
    return np.concatenate([*there, last, *back[::-1]])


def polygons_of(shape: Any) -> list[Any]:
    """The polygons of a geometry, without the lines and points where others touched."""
    shapely = require_shapely()
    return [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]


def _simplify(shape: Any, tolerance: float) -> Any:
    """shapely's, which calls itself as often as a ring has corners and would run out of stack."""
    shapely = require_shapely()
    corners = shapely.get_num_coordinates(shape)
    if corners < _MANY_CORNERS:
        return shapely.simplify(shape, tolerance)
    with _stack:
        before = threading.stack_size(min(corners * _STACK_A_CORNER, _MOST_STACK))
        try:
            pool = ThreadPoolExecutor(1)
            found = pool.submit(shapely.simplify, shape, tolerance)  # starts the thread
        finally:
            threading.stack_size(before)
    with pool:
        return found.result()


def _simplified(part: Any, tolerance: float) -> Any:
    shapely = require_shapely()
    while tolerance >= _FINEST:
        simple = _simplify(part, tolerance)
        if simple.is_valid and simple.geom_type == "Polygon":
            changed = shapely.symmetric_difference(part, simple).area
            if changed <= _MOST_CHANGED * part.area:
                return simple
        tolerance /= 2
    return part


def _cut(part: Any) -> float:
    """Where to cut a part: through the hole nearest to its middle, between two pixels if it can."""
    x0, _, x1, _ = part.bounds
    middle = (x0 + x1) / 2
    holes = [hole.bounds for hole in part.interiors]
    left, _, right, _ = min(holes, key=lambda hole: abs(hole[0] + hole[2] - 2 * middle))
    whole = float(round((left + right) / 2))
    return whole if left < whole < right else (left + right) / 2


def _nearest(ring: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[int, int]:
    """The indices of the corners that are nearest to each other."""
    from scipy.spatial import KDTree

    distances, indices = KDTree(other).query(ring)
    here = int(np.argmin(distances))
    return here, int(indices[here])

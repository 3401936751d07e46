"""A picture's masks as GeoJSON, in pixels: x to the right, y down, (0, 0) the picture's corner."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samtrt.files import replacing
from samtrt.formats.annotated import (
    WRITTEN_BY,
    AnnotatedPicture,
    first_text,
    joined,
    mask_of,
    score_of,
    to_text,
)
from samtrt.formats.polygons import outline

_LEFT_OUT = {"segmentation", "image_id", "category_id", "iscrowd", "bbox"}


def write_geojson(path: Path, picture: AnnotatedPicture, tolerance: float) -> None:
    """Writes a feature a mask: a Polygon, or a MultiPolygon of several parts, with its holes.

    The properties are the annotation's (score, area, prompt, …). A mask without pixels is left
    out. A file that has these masks already stays.

    Args:
        tolerance: see ``outline``.

    Raises:
        SamtrtError: the file cannot be written.
    """
    origin = {"dataset_sha256": picture.sha256, "tolerance": tolerance}
    head = to_text({"type": "FeatureCollection", WRITTEN_BY: origin})[:-1]
    if picture.sha256 and first_text(path).startswith(head):
        return
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(f'{head}, "features": [')
        file.writelines(joined(_features(picture, tolerance)))
        file.write("\n]}\n")


def _features(picture: AnnotatedPicture, tolerance: float) -> Iterator[str]:
    for annotation in picture.annotations:
        polygons = [_rings(part) for part in outline(mask_of(annotation), tolerance)]
        if not polygons:
            continue
        one = len(polygons) == 1
        properties = {key: value for key, value in annotation.items() if key not in _LEFT_OUT}
        yield to_text(
            {
                "type": "Feature",
                "id": annotation["id"],
                "geometry": {
                    "type": "Polygon" if one else "MultiPolygon",
                    "coordinates": polygons[0] if one else polygons,
                },
                "properties": {
                    **properties,
                    "category": picture.category_of(annotation),
                    "score": score_of(annotation),
                },
            }
        )


def _rings(polygon: Any) -> list[list[tuple[float, ...]]]:
    """The outer ring and the holes, each closed."""
    return [list(ring.coords) for ring in (polygon.exterior, *polygon.interiors)]

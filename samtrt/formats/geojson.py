"""A picture's masks as GeoJSON.

Of a picture that says where it lies, in longitude and latitude (WGS 84), as RFC 7946 has it. Of
others in pixels: x to the right, y down, (0, 0) the picture's corner.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samtrt.files import replacing
from samtrt.formats.annotated import (
    WRITTEN_BY,
    AnnotatedPicture,
    first_text,
    joined,
    score_of,
    to_text,
)
from samtrt.formats.polygons import outline_of, require_shapely
from samtrt.pictures.rasters import Georeference

_DECIMALS = 9  # of a degree: a tenth of a millimetre
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
    origin: dict[str, Any] = {"dataset_sha256": picture.sha256, "tolerance": tolerance}
    if picture.georeference is not None:
        origin["picture"] = picture.georeference.to_json()
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
        parts = outline_of(annotation, tolerance)
        if picture.georeference is not None:
            parts = [_on_earth(part, picture.georeference) for part in parts]
        polygons = [_rings(part) for part in parts]
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


def _on_earth(part: Any, georeference: Georeference) -> Any:
    """A polygon in longitude and latitude, the outer ring counter-clockwise."""
    shapely = require_shapely()
    found = shapely.transform(part, lambda corners: georeference.to_wgs84(corners).round(_DECIMALS))
    return shapely.geometry.polygon.orient(found)

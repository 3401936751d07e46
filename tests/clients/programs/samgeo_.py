"""samgeo (segment-geospatial): a georeferenced picture in tiles and as one, and a point."""

import numpy as np
import rasterio
from rasterio.transform import from_origin
from turn import Turn

turn = Turn()
turn.segment_anything()
import samgeo  # noqa: E402 (its import takes the registry's functions)

source = turn.work_dir / "source.tif"
height, width, bands = turn.picture.shape
profile = {
    "driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8",
    "crs": "EPSG:3857", "transform": from_origin(-1.36e7, 4.55e6, 0.3, 0.3),
}  # fmt: skip
with rasterio.open(source, "w", **profile) as target:
    target.write(turn.picture.transpose(2, 0, 1))

model = samgeo.SamGeo(
    model_type="vit_b",
    checkpoint=str(turn.checkpoint),
    device=turn.device,
    sam_kwargs={"points_per_side": 4},
)
turn.place(model.sam)
clicks = samgeo.SamGeo(
    model_type="vit_b", checkpoint=str(turn.checkpoint), device=turn.device, automatic=False
)
turn.place(clicks.sam)


def read(path: str) -> np.ndarray:
    with rasterio.open(path) as found:
        return found.read(1)


def work() -> dict:
    tiled, whole, point = (str(turn.work_dir / f"{name}.tif") for name in ("tiled", "all", "point"))
    model.generate(str(source), tiled, batch=True, batch_sample_size=(256, 256), foreground=True)
    model.generate(str(source), whole, foreground=True, unique=True)
    clicks.set_image(str(source))
    clicks.predict(point_coords=[[150, 150]], point_labels=1, output=point)
    return {"tiled": read(tiled) > 0, "all": read(whole).astype(int), "point": read(point) > 0}


turn.run(work, "segment-geospatial")

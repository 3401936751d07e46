"""The formats by name; free of imports, for whoever only lists them."""

# What every picture's masks are kept in, and the picture with its masks painted on it.
RECORD, PAINTED = "json", "png"
# The embeddings that they were made from.
EMBEDDED, EMBEDDED_ZARR = "embeddings", "zarr"

# Name → what it is, in the words of the command's help.
EXPORTS = {
    "coco": "one COCO data set of all pictures, run lengths: coco.json",
    "coco-polygons": "the same with polygons: coco-polygons.json",
    "geojson": "polygons with their holes, a file a picture: NAME.geojson",
    "labels": "each pixel's mask as a number, a PNG a picture: NAME.labels.png",
    "yolo": "YOLO's polygons with data.yaml: yolo/",
    "cvat": "CVAT's XML 1.1 with masks: cvat.xml",
    "label-studio": "Label Studio's tasks with brush masks: label-studio.json",
    "parquet": "a table with a row a mask: masks.parquet",
    "webdataset": "a tar with a data set and a label PNG a picture: masks.tar",
}
FORMATS = (RECORD, PAINTED, EMBEDDED, EMBEDDED_ZARR, *EXPORTS)
WITH_POLYGONS = ("coco-polygons", "geojson", "yolo")
# What is made of run lengths, however large a picture or a mask is.
WITHOUT_PIXELS = (RECORD, "coco", "coco-polygons", "geojson", "yolo", "parquet")

DEFAULT_TOLERANCE = 1.0  # pixels

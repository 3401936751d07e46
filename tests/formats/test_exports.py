"""Exports read back: every mask comes out of the other program's file as it went in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from shapely.geometry import Polygon, shape

from samtrt.errors import InputError, SamtrtError
from samtrt.formats.annotated import AnnotatedPicture
from samtrt.formats.export import check_exports, export, output_of
from samtrt.formats.label_studio import brush_rle
from samtrt.formats.names import EXPORTS, WITH_POLYGONS
from samtrt.formats.polygons import one_ring, outline, without_holes
from samtrt.masks.coco import coco_dataset

SIZE = (24, 37)


def drawn(*rows: str) -> np.ndarray:
    """A mask by hand: # is inside."""
    mask = np.zeros(SIZE, bool)
    for y, row in enumerate(rows):
        mask[y, : len(row)] = [character == "#" for character in row]
    return mask


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


MASKS = {
    "pixel": drawn("", " #"),
    "corner pixel": np.pad([[True]], ((SIZE[0] - 1, 0), (SIZE[1] - 1, 0))),
    "whole picture": np.ones(SIZE, bool),
    "a hole": drawn("#####", "#   #", "# # #", "#   #", "#####"),
    "a hole of a pixel": drawn("###", "# #", "###"),
    "holes in a row": drawn("#######", "# # # #", "#######", "## # ##", "#######"),
    "over a corner": drawn("##", "##", "  ##", "  ##"),
    "holes over a corner": drawn("#####", "#  ##", "#  ##", "### #", "#####"),
    "diagonal": np.eye(*SIZE, dtype=bool),
    "ring": disc(17, 11, 9.5) & ~disc(17, 11, 4.5),
    "two discs": disc(8, 8, 6.3) | disc(27, 14, 8.2),
    "disc": disc(18, 12, 10.7),
    "noise": np.random.default_rng(0).random(SIZE) < 0.6,
    "touches two edges": disc(0, 0, 9.2),
    "all but a pixel": ~drawn("", "", "    #"),
}


def record(mask: np.ndarray, number: int = 0) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [0, 0, 0, 0],
        "predicted_iou": 0.5 + number / 100,
        "point_coords": [[3.5, 4.5]],
        "stability_score": 0.9,
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
    }


def annotated(name: str, masks: list[np.ndarray]) -> AnnotatedPicture:
    records = [record(mask, number) for number, mask in enumerate(masks)]
    dataset = coco_dataset(Path(name), SIZE, records)
    return AnnotatedPicture(Path(name), SIZE, dataset["annotations"], "0" * 64)


@pytest.fixture
def pictures() -> list[AnnotatedPicture]:
    """One with all masks and an empty one, one without masks, one in a subfolder."""
    masks = list(MASKS.values())
    return [
        annotated("a.jpg", [*masks, np.zeros(SIZE, bool)]),
        annotated("bare.png", []),
        annotated("deep/ä & <b>.png", masks[3:5]),
    ]


def even_odd(ring: np.ndarray) -> np.ndarray:
    """What lies inside a ring, pixel centres tested by counting crossings to the left."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    x, y = columns + 0.5, rows + 0.5
    inside = np.zeros(SIZE, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 != y1:
            at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y0 <= y) != (y1 <= y)) & (at < x)
    return inside


def by_hand(polygon: Any) -> np.ndarray:
    """The pixels whose centres are inside a polygon with holes."""
    rings = [polygon.exterior, *polygon.interiors]
    return np.logical_xor.reduce([even_odd(np.array(ring.coords)[:-1]) for ring in rings])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


@pytest.mark.parametrize("name", MASKS)
def test_outlines_are_valid_and_hold_the_same_pixels(name: str) -> None:
    mask = MASKS[name]
    parts = outline(mask)
    assert all(part.is_valid for part in parts) and shapely.MultiPolygon(parts).is_valid
    assert sum(part.area for part in parts) == mask.sum()
    np.testing.assert_array_equal(np.logical_xor.reduce([by_hand(part) for part in parts]), mask)
    pieces = without_holes(parts)
    assert all(piece.is_valid and not piece.interiors for piece in pieces)
    together = np.sum([by_hand(piece) for piece in pieces], axis=0)
    np.testing.assert_array_equal(together, mask)  # no pixel twice
    np.testing.assert_array_equal(even_odd(one_ring(pieces)), mask)


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("name", MASKS)
def test_simplified_outlines_are_valid_and_near(name: str, tolerance: float) -> None:
    mask = MASKS[name]
    exact, parts = outline(mask), outline(mask, tolerance)
    simple = shapely.MultiPolygon(parts)
    assert simple.is_valid and len(parts) <= len(exact)
    assert sum(len(part.exterior.coords) for part in parts) <= sum(
        len(part.exterior.coords) for part in exact
    )
    whole = shapely.MultiPolygon(exact)
    # Twice: GEOS also drops a ring's first corner, after those beside it.
    assert whole.hausdorff_distance(simple) <= 2 * tolerance + 1e-9
    assert whole.symmetric_difference(simple).area <= 0.1 * whole.area + 1e-9
    x0, y0, x1, y1 = simple.bounds
    assert min(x0, y0) >= 0 and x1 <= SIZE[1] and y1 <= SIZE[0]
    assert all(not piece.interiors for piece in without_holes(parts))


def test_simplifying_leaves_corners_out() -> None:
    large = np.hypot(*(np.mgrid[:200, :200] - 100)) < 90
    (exact,), (simple,) = outline(large), outline(large, 1.0)
    assert len(simple.exterior.coords) < len(exact.exterior.coords) / 5
    assert simple.symmetric_difference(exact).area < 0.02 * exact.area
    assert len(outline(np.ones((50, 70), bool))[0].exterior.coords) == 5


@pytest.mark.parametrize("kind", ["coco", "coco-polygons"])
@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_coco_as_its_own_api_reads_it(
    pictures: list[AnnotatedPicture], tmp_path: Path, kind: str, tolerance: float
) -> None:
    export(kind, tmp_path, pictures, tolerance)
    coco = COCO(output_of(kind, tmp_path))
    names = [image["file_name"] for image in coco.loadImgs(coco.getImgIds())]
    assert names == ["a.jpg", "bare.png", "deep/ä & <b>.png"]
    numbers = sorted(coco.getAnnIds())
    assert numbers == list(range(1, len(numbers) + 1))
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "object"}]
    for image_id, picture in enumerate(pictures, start=1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        given = picture.annotations if kind == "coco" else picture.shown
        assert len(annotations) == len(given)
        for annotation, original in zip(annotations, given, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            expected = mask_utils.decode(original["segmentation"]).astype(bool)
            if kind == "coco" or tolerance == 0:
                np.testing.assert_array_equal(mask, expected)
            else:
                assert mask.any() and iou(mask, expected) > 0.75
            if kind == "coco-polygons":
                assert all(len(polygon) >= 6 for polygon in annotation["segmentation"])
                pieces = [
                    Polygon(np.reshape(polygon, (-1, 2))) for polygon in annotation["segmentation"]
                ]
                assert all(piece.is_valid for piece in pieces)
            assert annotation["area"] == mask.sum()
            box = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))))
            assert annotation["bbox"] == box.tolist()
            assert annotation["score"] == original["predicted_iou"]
            assert annotation["point_coords"] == [[3.5, 4.5]]


def test_coco_of_nothing(tmp_path: Path) -> None:
    export("coco", tmp_path, [annotated("a.jpg", [])], 1.0)
    coco = COCO(tmp_path / "coco.json")
    assert coco.getAnnIds() == [] and len(coco.getImgIds()) == 1


def test_an_old_record_without_a_score_has_one(tmp_path: Path) -> None:
    picture = annotated("a.jpg", [MASKS["disc"]])
    del picture.annotations[0]["score"]
    export("coco", tmp_path, [picture], 1.0)
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"][0]["score"] == 0.5


def test_geojson_has_valid_polygons_with_holes(
    pictures: list[AnnotatedPicture], tmp_path: Path
) -> None:
    export("geojson", tmp_path, pictures, 0.0)
    for picture in pictures:
        collection = json.loads((tmp_path / f"{picture.name}.geojson").read_text("utf-8"))
        features = collection["features"]
        assert collection["type"] == "FeatureCollection"
        assert [feature["id"] for feature in features] == [one["id"] for one in picture.shown]
        for feature, original in zip(features, picture.shown, strict=True):
            geometry = shape(feature["geometry"])
            assert geometry.is_valid and geometry.area == original["area"]
            mask = np.logical_xor.reduce([by_hand(part) for part in shapely.get_parts(geometry)])
            np.testing.assert_array_equal(mask, mask_utils.decode(original["segmentation"]))
            assert feature["properties"]["score"] == original["predicted_iou"]
            rings = [part.exterior for part in shapely.get_parts(geometry)]
            assert all(ring.is_ccw for ring in rings)  # as RFC 7946 asks


def test_geojson_is_written_anew_only_for_other_masks(tmp_path: Path) -> None:
    picture = annotated("a.jpg", [MASKS["disc"]])
    path = tmp_path / "a.jpg.geojson"

    def state(picture: AnnotatedPicture, tolerance: float) -> int:
        export("geojson", tmp_path, [picture], tolerance)
        return path.stat().st_ino

    first = state(picture, 1.0)
    assert state(picture, 1.0) == first
    second = state(picture, 2.0)
    assert second != first
    other = AnnotatedPicture(picture.name, SIZE, picture.annotations, "1" * 64)
    assert state(other, 2.0) != second


@pytest.mark.parametrize("count", [0, 3, 255, 256])
def test_a_label_image_numbers_the_masks(tmp_path: Path, count: int) -> None:
    masks = [disc(i % 30, i // 30 * 2, 1.1 + i % 5) for i in range(count)]
    picture = annotated("a.jpg", masks)
    export("labels", tmp_path, [picture], 1.0)
    expected = np.zeros(SIZE, int)
    for number, mask in sorted(enumerate(masks, 1), key=lambda item: -item[1].sum()):
        expected[mask] = number
    with Image.open(tmp_path / "a.jpg.labels.png") as image:
        assert image.mode == ("P" if count < 256 else "I;16")
        np.testing.assert_array_equal(np.array(image), expected)
        if count < 256:
            assert image.convert("RGB").getpixel((SIZE[1] - 1, SIZE[0] - 1)) == (0, 0, 0)
            assert len(image.convert("RGB").getcolors()) == 1 + len(set(expected.ravel()) - {0})


def test_yolos_lines_are_the_masks(pictures: list[AnnotatedPicture], tmp_path: Path) -> None:
    export("yolo", tmp_path, pictures, 0.0)
    folder = tmp_path / "yolo"
    labels = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt"))
    assert labels == ["labels/a.txt", "labels/bare.txt", "labels/deep/ä & <b>.txt"]
    assert (folder / "labels" / "bare.txt").read_text() == ""
    for picture in pictures:
        lines = (folder / "labels" / picture.name.with_suffix(".txt")).read_text().splitlines()
        for line, original in zip(lines, picture.shown, strict=True):
            number, *shares = line.split()
            assert number == "0" and all(0 <= float(share) <= 1 for share in shares)
            ring = np.reshape(np.array(shares, float), (-1, 2)) * SIZE[::-1]
            expected = mask_utils.decode(original["segmentation"]).astype(bool)
            np.testing.assert_array_equal(even_odd(ring), expected)
            encoded = mask_utils.frPyObjects([ring.ravel().tolist()], *SIZE)
            np.testing.assert_array_equal(mask_utils.decode(encoded)[..., 0], expected)


def test_yolos_data_yaml(pictures: list[AnnotatedPicture], tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    export("yolo", tmp_path, pictures, 0.0)
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert data == {"path": ".", "train": "images", "val": "images", "names": {0: "object"}}


def test_cvats_masks(pictures: list[AnnotatedPicture], tmp_path: Path) -> None:
    export("cvat", tmp_path, pictures, 1.0)
    root = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert root.findtext("meta/task/labels/label/name") == "object"
    images = root.findall("image")
    assert [image.get("name") for image in images] == [p.name.as_posix() for p in pictures]
    for image, picture in zip(images, pictures, strict=True):
        assert (image.get("width"), image.get("height")) == (str(SIZE[1]), str(SIZE[0]))
        elements = image.findall("mask")
        expected = sorted(picture.shown, key=lambda one: -one["area"])
        assert len(elements) == len(expected)
        for element, original in zip(elements, expected, strict=True):
            left, top, width, height = (
                int(element.attrib[key]) for key in ("left", "top", "width", "height")
            )
            counts = [int(count) for count in element.attrib["rle"].split(", ")]
            values = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
            mask = np.zeros(SIZE, bool)
            mask[top : top + height, left : left + width] = values.reshape(height, width)
            np.testing.assert_array_equal(mask, mask_utils.decode(original["segmentation"]))
            score = float(element.findtext("attribute") or "")
            assert score == pytest.approx(original["predicted_iou"], abs=5e-5)


def unpacked(rle: list[int]) -> np.ndarray:
    """Label Studio's bytes, read as thi.ng's rle-pack documents them."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return np.array(values)


def test_label_studios_tasks(pictures: list[AnnotatedPicture], tmp_path: Path) -> None:
    export("label-studio", tmp_path, pictures, 1.0)
    tasks = json.loads((tmp_path / "label-studio.json").read_text("utf-8"))
    assert tasks[2]["data"] == {"image": "/data/local-files/?d=deep/ä & <b>.png"}
    for task, picture in zip(tasks, pictures, strict=True):
        (prediction,) = task["predictions"]
        for result, original in zip(prediction["result"], picture.shown, strict=True):
            assert result["type"] == "brushlabels" and result["value"]["format"] == "rle"
            assert result["value"]["brushlabels"] == ["object"]
            assert (result["original_height"], result["original_width"]) == SIZE
            rgba = unpacked(result["value"]["rle"]).reshape(*SIZE, 4)
            expected = mask_utils.decode(original["segmentation"]) * 255
            np.testing.assert_array_equal(rgba, np.repeat(expected[..., None], 4, axis=2))


def test_label_studios_long_runs() -> None:
    mask = np.zeros((300, 400), bool)
    mask[1:, 3:] = True
    values = unpacked(brush_rle(mask)).reshape(300, 400, 4)
    np.testing.assert_array_equal(values[..., 3] == 255, mask)


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_others_have_written_is_refused_beforehand(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    names = [Path("a.jpg")]
    check_exports([kind], tmp_path, names)
    export(kind, tmp_path, [annotated("a.jpg", [MASKS["disc"]])], 1.0)
    check_exports([kind], tmp_path, names)  # ours
    file = output_of(kind, tmp_path, names[0])
    file.write_bytes(b"of somebody else")
    with pytest.raises(InputError, match="no earlier run has written it"):
        check_exports([kind], tmp_path, names)


def test_pictures_that_would_share_a_label_are_refused(tmp_path: Path) -> None:
    names = [Path("a.jpg"), Path("b/a.jpg"), Path("b/a.png")]
    check_exports(["coco"], tmp_path, names)
    with pytest.raises(InputError, match=r"b/a.jpg and b/a.png would share YOLO's labels/b/a.txt"):
        check_exports(["yolo"], tmp_path, names)


@pytest.mark.parametrize("kind", WITH_POLYGONS)
def test_a_missing_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shapely", None)
    with pytest.raises(SamtrtError, match="pip install shapely`"):
        check_exports([kind], tmp_path, [])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SamtrtError, match=r"parquet needs pyarrow, .*; run `.*install"):
        check_exports(["parquet"], tmp_path, [])
    for other in set(EXPORTS) - {*WITH_POLYGONS, "parquet"}:
        check_exports([other], tmp_path, [])


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    for kind in ("coco", "coco-polygons", "cvat", "label-studio"):
        export(kind, tmp_path, [annotated("a.jpg", [MASKS["disc"]])], 1.0)
        before = output_of(kind, tmp_path).read_bytes()
        failing: Callable[[], Any] = lambda: (1 / 0 for _ in range(1))  # noqa: E731
        with pytest.raises(ZeroDivisionError):
            export(kind, tmp_path, failing(), 1.0)
        assert output_of(kind, tmp_path).read_bytes() == before

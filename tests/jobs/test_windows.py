"""Pictures by windows: whole masks, places on Earth, bounded memory, restarts within a picture."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_support import encoded, picture, tiny_model

from samtrt.cli import commands
from samtrt.console import run_script
from samtrt.errors import InputError
from samtrt.jobs import segmenting
from samtrt.jobs.folder import segment_folder
from samtrt.jobs.windows import Windowing
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.rasters import Reading
from samtrt.sam import Sam, load_sam

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rasterio.features")

ARGUMENTS: dict[str, Any] = {
    "points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0
}  # fmt: skip
OPTIONS = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
SIZE = (150, 200)
PLAIN = Reading()
# Metres of UTM 33 around its central meridian, 15° E: a pixel is half a metre.
TRANSFORM = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_800_000)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model(), "cpu")


def write_tiff(path: Path, bands: np.ndarray, **options: Any) -> Path:
    """[C, H, W] as a GeoTIFF."""
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype,
        **{"crs": "EPSG:32633", "transform": TRANSFORM, **options},
    ) as file:  # fmt: skip
        file.write(bands)
    return path


@pytest.fixture
def tiff(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_tiff(tmp_path / "in" / "a.tif", picture(0, *SIZE).transpose(2, 0, 1))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def run(*arguments: Any) -> int:
    given = ["everything", *map(str, arguments), "--params", str(tiny_model())]
    return run_script(lambda: commands.run(given))


def test_windows_cover_a_picture_and_overlap() -> None:
    for size in ((64, 64), (65, 300), (1000, 64), (500, 411)):
        windows = Windowing(64, 16).grid(size)
        seen = np.zeros(size, int)
        for window in windows:
            assert (window.width, window.height) == (64, 64)
            seen[window.y : window.y + 64, window.x : window.x + 64] += 1
        assert seen.min() >= 1 and len(set(windows)) == len(windows)
        rows = sorted({window.y for window in windows})
        assert all(after - before <= 48 for before, after in pairwise(rows))
    assert [window.box for window in Windowing(64, 0).grid((40, 50))] == [[0, 0, 50, 40]]


def test_one_window_has_the_masks_of_the_whole_picture(
    sam: Sam, tiff: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = segment_folder(
        sam, tiff, out, ["json"], show_progress=False, windowing=Windowing(256, 64), **ARGUMENTS
    )
    assert list(tree(out)) == ["a.tif.json"] and list(report.segmented) == [Path("a.tif")]
    dataset = json.loads((out / "a.tif.json").read_text())
    records = SamAutomaticMaskGenerator(sam, **ARGUMENTS).generate(picture(0, *SIZE))
    assert len(dataset["annotations"]) == len(records) > 0
    for annotation, record in zip(dataset["annotations"], records, strict=True):
        mask = coco_decode_rle(annotation["segmentation"])
        np.testing.assert_array_equal(mask, record["segmentation"])
        assert annotation["area"] == record["area"]
        assert annotation["point_coords"] == record["point_coords"]
    assert dataset["images"][0]["georeference"] == {
        "crs": "EPSG:32633", "transform": [0.5, 0.0, 500_000.0, 0.0, -0.5, 5_800_000.0]
    }  # fmt: skip


def test_boxes_have_the_masks_of_their_window(sam: Sam, tiff: Path, tmp_path: Path) -> None:
    """One in a window of the grid, one that none has the whole of, one that reaches out."""
    boxes = [(70.5, 20.0, 100.25, 60.0), (10.0, 30.0, 150.0, 100.0), (180.0, 120.0, 230.0, 160.0)]
    prompts = tmp_path / "boxes.csv"
    rows = [f"a.tif,{','.join(map(str, box))}" for box in boxes]
    prompts.write_text("\n".join(["file_name,x0,y0,x1,y1", *rows]))
    out = tmp_path / "out"
    segment_folder(
        sam, tiff, out, ["json"], show_progress=False, prompts=prompts,
        windowing=Windowing(96, 32),
    )  # fmt: skip
    annotations = json.loads((out / "a.tif.json").read_text())["annotations"]
    assert [one["prompt_box"] for one in annotations] == [
        [70.5, 20.0, 29.75, 40.0], [10.0, 30.0, 140.0, 70.0], [180.0, 120.0, 20.0, 30.0]
    ]  # fmt: skip
    whole = picture(0, *SIZE)
    # By hand: the starts are 0, 64, 104 and 0, 54; a box of 140 pixels takes a window of 175,
    # as high as the picture.
    windows = [(64, 0, 160, 96), (0, 0, 175, 150), (104, 54, 200, 150)]
    from samtrt.masks.predictor import SamPredictor

    predictor = SamPredictor(sam)
    for annotation, (x0, y0, x1, y1), box in zip(annotations, windows, boxes, strict=True):
        predictor.set_image(np.ascontiguousarray(whole[y0:y1, x0:x1]))
        cut = np.minimum(box, (200, 150, 200, 150)) - (x0, y0, x0, y0)
        (mask,), (score,), _ = predictor.predict(box=cut, multimask_output=False)
        expected = np.zeros(SIZE, bool)
        expected[y0:y1, x0:x1] = mask
        np.testing.assert_array_equal(coco_decode_rle(annotation["segmentation"]), expected)
        assert annotation["predicted_iou"] == pytest.approx(float(score), abs=1e-6)


def test_geojson_is_in_longitude_and_latitude(sam: Sam, tiff: Path, tmp_path: Path) -> None:
    shapely = pytest.importorskip("shapely")
    out = tmp_path / "out"
    segment_folder(
        sam, tiff, out, ["json", "geojson"], show_progress=False, tolerance=0.0,
        windowing=Windowing(96, 32), **ARGUMENTS,
    )  # fmt: skip
    features = json.loads((out / "a.tif.geojson").read_text())["features"]
    annotations = json.loads((out / "a.tif.json").read_text())["annotations"]
    by_id = {one["id"]: one for one in annotations}
    assert features and "crs" not in features[0]
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        for part in shapely.get_parts(shape):
            assert part.exterior.is_ccw and not any(hole.is_ccw for hole in part.interiors)
        x0, y0, x1, y1 = shape.bounds
        # 200 half metres east of 15° E, at 52° N.
        assert 15.0 - 1e-9 <= x0 < x1 <= 15.0 + 100 / 68_500 * 1.01 and 52.3 < y0 < y1 < 52.4
        # Back to metres (the oracle's way there), and burnt in, it is the mask.
        back = rasterio.warp.transform_geom("EPSG:4326", "EPSG:32633", feature["geometry"])
        burnt = rasterio.features.rasterize([back], SIZE, transform=TRANSFORM).astype(bool)
        mask = coco_decode_rle(by_id[feature["id"]]["segmentation"])
        assert (burnt != mask).mean() < 1e-4


def test_kinds_of_pictures(tmp_path: Path) -> None:
    """Grey, 16 bits, floats by a range, chosen bands, a palette, alpha."""
    from samtrt.pictures.rasters import look_at, read_part

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (3, 20, 30), np.uint8)

    def part(bands: np.ndarray, reading: Reading = PLAIN, **options: Any) -> np.ndarray:
        path = write_tiff(tmp_path / "x.tif", bands, **options)
        return read_part(str(path), (4, 2, 20, 15), reading)

    expected = rgb.transpose(1, 2, 0)[2:17, 4:24]
    np.testing.assert_array_equal(part(rgb, photometric="RGB"), expected)
    grey = np.repeat(expected[..., :1], 3, axis=2)
    np.testing.assert_array_equal(part(rgb[:1]), grey)
    np.testing.assert_array_equal(part(rgb.astype(np.uint16) * 257), expected)
    five = np.concatenate([np.zeros((2, 20, 30), np.uint8), rgb])
    np.testing.assert_array_equal(part(five, Reading((3, 4, 5))), expected)
    np.testing.assert_array_equal(part(five, Reading((3,))), grey)
    metres = rgb.astype(np.float32) / 255 * 50 - 10
    metres[:, 5, 5] = np.nan
    found = part(metres, Reading(None, (-10, 40)))
    assert found[3, 1].tolist() == [0, 0, 0]
    found[3, 1] = expected[3, 1]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        InputError, match=r"holds float32, whose range is unknown; say .*value-range"
    ):
        part(metres)
    with pytest.raises(InputError, match="has 3 bands, and --bands asks for 4"):
        part(rgb, Reading((1, 2, 4)))
    alpha = np.full((1, 20, 30), 255, np.uint8)
    alpha[0, 2:5] = 0
    found = part(np.concatenate([rgb, alpha]), photometric="RGB", alpha="NON-PREMULTIPLIED")
    assert (found[:3] == 255).all()
    np.testing.assert_array_equal(found[3:], expected[3:])
    palette = Image.fromarray(rgb[0]).convert("P")
    palette.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        read_part(str(tmp_path / "p.png"), (4, 2, 20, 15), Reading()),
        np.asarray(palette.convert("RGB"))[2:17, 4:24],
    )
    Image.fromarray(rgb.transpose(1, 2, 0)).save(tmp_path / "t.jpg", exif=_turned())
    with pytest.raises(InputError, match="EXIF orientation 6"):
        look_at(str(tmp_path / "t.jpg")).check_upright("t.jpg")
    (tmp_path / "no.tif").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read by windows"):
        look_at(str(tmp_path / "no.tif"))
    vrt = tmp_path / "vrt.tif"  # which names another file
    vrt.write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    with pytest.raises(InputError, match="cannot be read by windows"):
        look_at(str(vrt))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def test_restarts_go_on_within_a_picture(
    sam: Sam, tiff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some windows, and again at the merge: the files of an undisturbed run."""
    formats, windowing = ["json", "coco", "geojson"], Windowing(96, 32)
    (tiff.parent / "small.png").write_bytes(encoded(picture(3, 60, 60)))
    (tiff.parent / "bad.tif").write_bytes(b"no picture")

    def job(out: Path) -> Any:
        return segment_folder(
            sam, tiff.parent, out, formats, show_progress=False, windowing=windowing, **ARGUMENTS
        )

    report = job(tmp_path / "once")
    expected = tree(tmp_path / "once")
    assert sorted(expected) == [
        "a.tif.geojson", "a.tif.json", "coco.json", "small.png.geojson", "small.png.json"
    ]  # fmt: skip
    assert list(report.failed) == [Path("bad.tif")] and len(report.segmented) == 2
    out = tmp_path / "again"
    embed, count = sam.embed, 0

    def stopping(image: np.ndarray) -> Any:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return embed(image)

    monkeypatch.setattr(sam, "embed", stopping)
    with pytest.raises(KeyboardInterrupt):
        job(out)
    assert len(list((out / "a.tif.windows").iterdir())) == 4
    count = 3  # one more, and two that are known
    with pytest.raises(KeyboardInterrupt):
        job(out)
    assert len(list((out / "a.tif.windows").iterdir())) == 5
    monkeypatch.setattr(sam, "embed", embed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samtrt.jobs.windows.merged", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            job(out)
    assert len(list((out / "a.tif.windows").iterdir())) == 6
    assert len(job(out).segmented) == 2
    assert tree(out) == expected
    (out / "a.tif.windows").mkdir()  # as if killed before it went
    (out / "a.tif.windows" / "0000000_0000000_96x96.json").write_text("{}")
    report = job(out)
    assert sorted(report.resumed) == [Path("a.tif"), Path("small.png")] and not report.segmented
    assert tree(out) == expected


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_window_that_fails_is_its_pictures_row(
    sam: Sam, tiff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, count = sam.embed, 0

    def failing(image: np.ndarray) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise InputError("no such thing")
        return embed(image)

    monkeypatch.setattr(sam, "embed", failing)
    report = segment_folder(
        sam, tiff, tmp_path / "out", ["json"], show_progress=False, windowing=Windowing(96, 32),
        **ARGUMENTS,
    )  # fmt: skip
    assert report.failed == {Path("a.tif"): "window [64, 0, 96, 96]: no such thing"}
    assert not report.segmented and not (tmp_path / "out" / "a.tif.json").exists()


def test_threads_and_windows(
    sam: Sam, tiff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(out: Path) -> dict[str, bytes]:
        segment_folder(
            sam, tiff, out, ["json"], show_progress=False, windowing=Windowing(96, 32), **ARGUMENTS
        )
        return tree(out)

    expected = job(tmp_path / "one")
    monkeypatch.setitem(segmenting.AT_ONCE, "cpu", 2)
    assert job(tmp_path / "two") == expected


def test_what_is_not_done_by_windows_is_refused(
    tiff: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output-dir", tmp_path / "out"]
    for options, message in (
        (["--window", 96, "--format", "png"], "the format png takes pictures as a whole"),
        (["--window", 96, "--format", "embeddings"], "the format embeddings takes"),
        (["--window", 96, "--embeddings", tmp_path], "an embedding is of a whole picture"),
        (["--window", 8], "a window of 8 pixels; expected 64 to 10,000"),
        (["--window", 96, "--overlap", 60], "overlap by 60; expected 0 to 48"),
        (["--overlap", 60], "--overlap is of --window"),
        (["--value-range", "0,1"], "--value-range is of --window"),
        (["--window", 96, "--bands", "1,x,3"], "--bands is 1,x,3; expected numbers"),
        (["--window", 96, "--bands", "1,2"], "expected three numbers from 1, or one"),
        (["--window", 96, "--value-range", "5,1"], "the range of values is 5 to 1"),
    ):
        assert run(tiff, *out, *options) != 0
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error
    assert not (tmp_path / "out").exists()


PEAK = """
import resource, sys
from pathlib import Path
from samtrt.jobs.folder import segment_folder
from samtrt.jobs.windows import Windowing
from samtrt.sam import load_sam
model, *sources = map(Path, sys.argv[1:])
sam = load_sam(model / "engine", model, "cpu")
for source in sources:
    report = segment_folder(sam, source, source.with_suffix(""), ["json", "coco"],
        show_progress=False, windowing=Windowing(2048, 256), points_per_side=1,
        pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert report.masks > 0 and not report.failed, report
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_is_that_of_windows(tmp_path: Path) -> None:
    """A picture of 10,500 × 10,500 pixels, 315 MiB, which is refused as a whole, takes at most a
    third of that more than one of 2,048."""
    sides = {"small": 2048, "large": 10_500}
    for name, side in sides.items():
        options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "lzw"}
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", count=3, height=side, width=side,
            dtype="uint8", photometric="RGB", crs="EPSG:32633", transform=TRANSFORM, **options,
        ) as file:  # fmt: skip
            block = picture(0, 512, 512).transpose(2, 0, 1)
            for y in range(0, side - 511, 2048):
                file.write(block, window=((y, y + 512), (0, 512)))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tiny_model(), *(tmp_path / f"{name}.tif" for name in sides)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split())
    assert large - small < (3 * sides["large"] ** 2 >> 20) / 3, (small, large)

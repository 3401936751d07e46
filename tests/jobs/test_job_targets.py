"""Tables, shards and embeddings as targets; embeddings that a later job takes."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from server_support import encoded, picture, tiny_model

from samtrt.errors import InputError, SamtrtError
from samtrt.jobs.folder import FolderReport, segment_folder
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.embedding import load_embedding
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, load_sam

ARGUMENTS: dict[str, Any] = {
    "points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model(), "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep.er").mkdir(parents=True)
    (folder / "a.b.png").write_bytes(encoded(picture(1)))
    (folder / "deep.er" / "c.png").write_bytes(encoded(picture(2)))
    return folder


def run(sam: Sam, photos: Path, out: Path, *formats: str, **options: Any) -> FolderReport:
    arguments = {**ARGUMENTS, **options}
    return segment_folder(sam, photos, out, formats, show_progress=False, **arguments)


def annotations(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / f"{name}.json").read_text())["annotations"]
    return found


def test_a_table_with_a_row_a_mask(sam: Sam, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    run(sam, photos, out, "parquet")
    rows = parquet.read_table(out / "masks.parquet").to_pylist()
    made = [("a.b.png", one) for one in annotations(out, "a.b.png")]
    made += [("deep.er/c.png", one) for one in annotations(out, "deep.er/c.png")]
    assert len(rows) == len(made) > 2
    for number, (row, (name, annotation)) in enumerate(zip(rows, made, strict=True), start=1):
        assert (row["picture"], row["id"], row["category"]) == (name, number, "object")
        assert row["box"] == annotation["bbox"] and row["score"] == annotation["score"]
        rle = {"size": [row["height"], row["width"]], "counts": row["rle"]}
        mask = mask_utils.decode({**rle, "counts": rle["counts"].encode()})
        assert mask.sum() == row["area"] == annotation["area"]
    before = (out / "masks.parquet").read_bytes()
    run(sam, photos, out, "parquet")  # ours, made again
    assert (out / "masks.parquet").read_bytes() == before
    others = parquet.read_table(out / "masks.parquet", columns=["id"]).replace_schema_metadata()
    parquet.write_table(others, out / "masks.parquet")
    with pytest.raises(InputError, match="no earlier run has written it"):
        run(sam, photos, out, "parquet")


def test_a_webdatasets_shard(sam: Sam, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(sam, photos, out, "webdataset", "labels")
    with tarfile.open(out / "masks.tar") as tar:
        names = tar.getnames()
        files = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert names == [
        "a_b.json", "a_b.labels.png", "deep_er/c.json", "deep_er/c.labels.png"
    ]  # fmt: skip
    dataset = json.loads(files["deep_er/c.json"])
    assert dataset["images"][0]["file_name"] == "deep.er/c.png"
    assert dataset["annotations"] == annotations(out, "deep.er/c.png")
    labels = np.array(Image.open(io.BytesIO(files["a_b.labels.png"])))
    np.testing.assert_array_equal(labels, np.array(Image.open(out / "a.b.png.labels.png")))
    before = (out / "masks.tar").read_bytes()
    run(sam, photos, out, "webdataset")
    assert (out / "masks.tar").read_bytes() == before
    (photos / "a_b.png").write_bytes(encoded(picture(3)))
    with pytest.raises(InputError, match=r"would share WebDataset's key a_b"):
        run(sam, photos, out, "webdataset")
    (photos / "a_b.png").unlink()
    with tarfile.open(out / "masks.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("mine"))
    with pytest.raises(InputError, match="no earlier run has written it"):
        run(sam, photos, out, "webdataset")


def test_embeddings_take_the_place_of_encoding(
    sam: Sam, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    run(sam, photos, plain, "json")
    run(sam, photos, kept, "embeddings")
    assert annotations(kept, "a.b.png") == annotations(plain, "a.b.png")
    assert run(sam, photos, kept, "embeddings").resumed  # and the embeddings are looked at
    (kept / "a.b.png.safetensors").write_bytes(b"cut")
    failed = run(sam, photos, kept, "embeddings").failed
    assert "no earlier run has written it" in failed[Path("a.b.png")]
    (kept / "a.b.png.safetensors").unlink()
    assert list(run(sam, photos, kept, "embeddings").segmented) == [Path("a.b.png")]

    # The predictor and the generator take them.
    image = picture(1)
    file = kept / "a.b.png.safetensors"
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    features = predictor.get_image_embedding().numpy()
    predictor.load_embedding(file, image)
    np.testing.assert_array_equal(predictor.get_image_embedding().numpy(), features)
    generator = SamAutomaticMaskGenerator(sam, **ARGUMENTS, output_mode="coco_rle")
    found = generator.generate_embedded(load_embedding(file, image, sam))
    assert [one["segmentation"] for one in found] == [
        one["segmentation"] for one in annotations(plain, "a.b.png")
    ]

    # A later job takes them, and does not encode.
    with monkeypatch.context() as patch:
        patch.setattr(Sam, "embed", lambda *_: pytest.fail("encoded"))
        later = tmp_path / "later"
        assert len(run(sam, photos, later, "json", embeddings=kept).segmented) == 2
        for name in ("a.b.png", "deep.er/c.png"):
            content = (later / f"{name}.json").read_bytes()
            assert content == (plain / f"{name}.json").read_bytes()
        boxes = tmp_path / "boxes.csv"
        boxes.write_text("file_name,x0,y0,x1,y1\na.b.png,10,10,90,90\n")
        report = segment_folder(
            sam, photos, tmp_path / "boxes", ["json"], show_progress=False, prompts=boxes,
            embeddings=kept,
        )  # fmt: skip
        assert report.segmented == {Path("a.b.png"): 1, Path("deep.er/c.png"): 0}

    # One that is missing, or of another picture, is not encoded in silence.
    (kept / "a.b.png.safetensors").unlink()
    (photos / "deep.er" / "c.png").write_bytes(encoded(picture(7)))
    failed = run(sam, photos, tmp_path / "none", "json", embeddings=kept).failed
    assert "no embedding at" in failed[Path("a.b.png")]
    assert "is stale: it belongs to another picture" in failed[Path("deep.er/c.png")]
    with pytest.raises(InputError, match="crops have their own"):
        run(sam, photos, tmp_path / "crops", "embeddings", crop_n_layers=1)


def test_a_second_job_on_a_folder_is_refused(sam: Sam, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = []

    def embed(image: np.ndarray, *arguments: Any) -> Any:
        if not told:
            with pytest.raises(SamtrtError, match=r"another process is writing .*out; wait"):
                run(load_sam(tiny_model() / "engine", tiny_model(), "cpu"), photos, out, "json")
            told.append(True)
        return type(sam).embed(sam, image, *arguments)

    sam.embed = embed  # type: ignore[method-assign]
    try:
        assert len(run(sam, photos, out, "json").segmented) == 2 and told
    finally:
        del sam.embed
    assert sorted(path.name for path in out.rglob("*.*")) == [
        "a.b.png.json", "c.png.json", "deep.er"
    ]  # fmt: skip


def test_embeddings_as_zarr(sam: Sam, photos: Path, tmp_path: Path) -> None:
    """The same numbers as safetensors, for a later job, the predictor and zarr itself."""
    zarr = pytest.importorskip("zarr")
    kept = tmp_path / "kept"
    run(sam, photos, kept, "zarr", "embeddings")
    assert len(run(sam, photos, kept, "zarr", "embeddings").resumed) == 2
    file = kept / "a.b.png.zarr.zip"
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert list(run(sam, photos, kept, "zarr", "embeddings").segmented) == [Path("a.b.png")]
    assert file.read_bytes() == content  # byte for byte, at another time
    image = picture(1)
    predictor = SamPredictor(sam)
    predictor.load_embedding(kept / "a.b.png.safetensors", image)
    features = predictor.get_image_embedding().numpy()
    predictor.load_embedding(file, image)
    np.testing.assert_array_equal(predictor.get_image_embedding().numpy(), features)
    predictor.save_embedding(tmp_path / "one.zarr.zip")
    assert (tmp_path / "one.zarr.zip").read_bytes() == content
    with zarr.storage.ZipStore(str(file), mode="r") as store:
        np.testing.assert_array_equal(zarr.open_group(store, mode="r")["features"][...], features)
    expected = annotations(kept, "a.b.png")
    for name in kept.rglob("*.safetensors"):
        name.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam, "embed", lambda image: pytest.fail("encoded again"))
        later = tmp_path / "later"
        assert len(run(sam, photos, later, "json", embeddings=kept).segmented) == 2
        assert annotations(later, "a.b.png") == expected
        (kept / "deep.er" / "c.png.zarr.zip").write_bytes(content)
        file.write_bytes(content.replace(b'"samtrt"', b'"SAMTRT"'))
        failed = run(sam, photos, tmp_path / "not", "json", embeddings=kept).failed
    assert "belongs to another picture" in failed[Path("deep.er/c.png")]
    assert "is damaged" in failed[Path("a.b.png")]


def test_zarr_that_is_missing_is_told_before_the_model(
    sam: Sam, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(SamtrtError, match=r"zarr is not installed .*; run `.*install"):
        run(sam, photos, tmp_path / "out", "zarr")
    assert not (tmp_path / "out").exists()

"""A folder of pictures: outputs that agree, bad files that stop nothing, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from oracle import tiny_config
from PIL import Image

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import InputError
from samtrt.jobs.folder import find_pictures, paint_masks, segment_folder
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.reading import load_image
from samtrt.sam import Sam, sam_from_parameters

ARGUMENTS = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def make_sam(seed: int = 3) -> Sam:
    parameters = random_parameters(tiny_config(), seed)
    return sam_from_parameters(parameters, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def sam() -> Sam:
    return make_sam()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good pictures, one of them deeper, and what else lies about in folders."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    astronaut = skimage.data.astronaut()
    Image.fromarray(astronaut[:90, :120]).save(folder / "a.jpg")
    Image.fromarray(astronaut[100:220, 50:130]).save(folder / "b.PNG")
    Image.fromarray(astronaut[:60, :60, 0]).save(folder / "deeper" / "grey.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


GOOD = [Path("a.jpg"), Path("b.PNG"), Path("deeper/grey.png")]
BAD = [Path("cut.jpg"), Path("empty.jpg"), Path("text.png")]


def test_good_pictures_are_segmented_and_bad_files_reported(
    sam: Sam, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    report = segment_folder(sam, folder, out, **ARGUMENTS)
    assert list(report.segmented) == GOOD and report.resumed == []
    assert sorted(report.failed) == BAD
    assert all("\n" not in reason for reason in report.failed.values())
    assert "empty" in report.failed[Path("empty.jpg")]
    written = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert written == sorted(Path(f"{n}.{suffix}") for n in GOOD for suffix in ("json", "png"))

    lines = capsys.readouterr().err.splitlines()  # no terminal: one line a picture
    assert len(lines) == len(GOOD) + len(BAD)
    assert lines[0].startswith("[1/6] a.jpg: ") and lines[0].endswith(" masks")
    assert sum("skipped" in line for line in lines) == 3

    for name in GOOD:
        image = load_image(folder / name)
        records = SamAutomaticMaskGenerator(sam, **ARGUMENTS).generate(image)
        dataset = json.loads((out / f"{name}.json").read_text())
        assert report.segmented[name] == len(records) == len(dataset["annotations"]) > 0
        height, width = image.shape[:2]
        assert dataset["images"] == [
            {"id": 1, "width": width, "height": height, "file_name": name.as_posix()}
        ]
        for annotation, record in zip(dataset["annotations"], records, strict=True):
            mask = coco_decode_rle(annotation["segmentation"])
            np.testing.assert_array_equal(mask, record["segmentation"])
            assert annotation["area"] == mask.sum() and annotation["bbox"] == record["bbox"]
        painted = np.array(Image.open(out / f"{name}.png"))
        masks = [record["segmentation"] for record in records]
        np.testing.assert_array_equal(painted, paint_masks(image, masks))


def test_json_is_what_cocos_own_api_reads(sam: Sam, folder: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    segment_folder(sam, folder, tmp_path / "out", show_progress=False, **ARGUMENTS)
    coco = COCO(tmp_path / "out" / "a.jpg.json")
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert annotations
    for annotation in annotations:
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_a_run_is_resumed_and_outdated_outputs_are_made_again(
    sam: Sam, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = SamAutomaticMaskGenerator.generate
    calls = []

    def generate(self: SamAutomaticMaskGenerator, image: np.ndarray) -> list:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(image.shape)
        return real(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(SamAutomaticMaskGenerator, "generate", generate)
        with pytest.raises(KeyboardInterrupt):
            segment_folder(sam, folder, out, show_progress=False, **ARGUMENTS)
    assert sorted(path.name for path in out.rglob("*")) == ["a.jpg.json", "a.jpg.png"]

    def run(model: Sam = sam, **changes: object) -> tuple[list[Path], list[Path]]:
        report = segment_folder(model, folder, out, show_progress=False, **{**ARGUMENTS, **changes})
        return list(report.segmented), report.resumed

    assert run() == (GOOD[1:], GOOD[:1])
    assert run() == ([], GOOD)
    (out / "a.jpg.png").unlink()
    (out / "b.PNG.json").write_text("{cut off")
    assert run() == (GOOD[:2], GOOD[2:])
    Image.fromarray(skimage.data.astronaut()[5:95, :120]).save(folder / "a.jpg")
    assert run() == (GOOD[:1], GOOD[1:])
    assert run(points_per_side=2) == (GOOD, [])
    assert run(model=make_sam(seed=4), points_per_side=2) == (GOOD, [])


def test_json_alone(sam: Sam, folder: Path, tmp_path: Path) -> None:
    report = segment_folder(
        sam, folder, tmp_path / "o", formats=["json"], show_progress=False, **ARGUMENTS
    )
    assert list(report.segmented) == GOOD
    assert {path.suffix for path in (tmp_path / "o").rglob("*.*")} == {".json"}


def test_outputs_beside_the_pictures_are_not_pictures(sam: Sam, folder: Path) -> None:
    for output_dir in (folder, folder / "deeper" / "out"):
        first = segment_folder(sam, folder, output_dir, show_progress=False, **ARGUMENTS)
        again = segment_folder(sam, folder, output_dir, show_progress=False, **ARGUMENTS)
        assert list(first.segmented) == GOOD == again.resumed
        for path in folder.rglob("*"):
            if path.suffix == ".json" or path.name in {f"{name.name}.png" for name in GOOD}:
                path.unlink()


def test_bad_arguments(sam: Sam, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder at"):
        segment_folder(sam, tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no pictures in"):
        segment_folder(sam, tmp_path / "bare", tmp_path / "out")
    with pytest.raises(InputError, match="unknown format tiff"):
        segment_folder(sam, folder, tmp_path / "out", formats=["tiff"])
    assert find_pictures(folder) == sorted([*GOOD, *BAD])
    assert not (tmp_path / "out").exists()


def test_painted_masks_part_and_small_ones_lie_on_top() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    large, small = np.zeros((2, 40, 60), bool)
    large[5:35, 5:50], small[10:20, 10:20] = True, True
    for masks in ([large, small], [small, large]):
        painted = paint_masks(image, masks)
        np.testing.assert_array_equal(painted[2, 2], image[2, 2])
        inside_small, inside_large = painted[15, 15].astype(int), painted[30, 40].astype(int)
        assert np.abs(inside_small - inside_large).max() > 50
        assert np.abs(inside_large - 100).max() > 50
        assert painted[15, 10].sum() < 0.5 * painted[15, 15].sum()  # the line between them
    np.testing.assert_array_equal(paint_masks(image, []), image)

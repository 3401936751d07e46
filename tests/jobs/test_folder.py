"""A folder of pictures: outputs that agree, bad files that stop nothing, resuming."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from oracle import tiny_config
from PIL import Image
from pycocotools import mask as mask_utils

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import InputError, SamtrtError
from samtrt.jobs.folder import segment_folder
from samtrt.jobs.progress import FolderReport
from samtrt.jobs.sources import find_sources
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.coco import coco_dataset
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.drawing import paint_masks
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
            assert annotation["area"] == mask.sum()
            box = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))))
            assert annotation["bbox"] == box.tolist()  # where Meta's records are a pixel smaller
            assert record["bbox"] == [*box[:2], box[2] - 1, box[3] - 1]
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

    def generate(self: SamAutomaticMaskGenerator, image: np.ndarray, **options: Any) -> list:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(image.shape)
        return real(self, image, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SamAutomaticMaskGenerator, "generate", generate)
        with pytest.raises(KeyboardInterrupt):
            segment_folder(sam, folder, out, show_progress=False, **ARGUMENTS)
    assert sorted(path.name for path in out.rglob("*")) == ["a.jpg.json", "a.jpg.png"]

    def run_again(model: Sam = sam, **changes: object) -> tuple[list[Path], list[Path]]:
        report = segment_folder(model, folder, out, show_progress=False, **{**ARGUMENTS, **changes})
        return list(report.segmented), report.resumed

    assert run_again() == (GOOD[1:], GOOD[:1])
    assert run_again() == ([], GOOD)
    (out / "a.jpg.png").unlink()
    (out / "b.PNG.json").write_text("{cut off")
    assert run_again() == (GOOD[:2], GOOD[2:])
    Image.fromarray(skimage.data.astronaut()[5:95, :120]).save(folder / "a.jpg")
    assert run_again() == (GOOD[:1], GOOD[1:])
    assert run_again(points_per_side=2) == (GOOD, [])
    assert run_again(model=make_sam(seed=4), points_per_side=2) == (GOOD, [])


@pytest.mark.parametrize("altered", ["annotation", "png", "cut png", "cut json", "no png"])
def test_altered_outputs_are_made_again(
    sam: Sam, folder: Path, tmp_path: Path, altered: str
) -> None:
    out = tmp_path / "masks"
    segment_folder(sam, folder, out, **ARGUMENTS)
    expected = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    json_file, png_file = out / "a.jpg.json", out / "a.jpg.png"
    if altered == "annotation":
        value = json.loads(json_file.read_text("utf-8"))
        value["annotations"][0]["area"] += 1
        json_file.write_text(json.dumps(value), "utf-8")
    elif altered == "png":
        content = bytearray(expected[png_file])
        content[-20] ^= 1
        png_file.write_bytes(content)
    elif altered == "cut png":
        os.truncate(png_file, 3000)
    elif altered == "cut json":
        os.truncate(json_file, len(expected[json_file]) - 9)
    else:
        png_file.unlink()
    report = segment_folder(sam, folder, out, **ARGUMENTS)
    assert list(report.segmented) == [Path("a.jpg")] and report.resumed == GOOD[1:]
    assert {path: path.read_bytes() for path in expected} == expected


def test_a_json_that_is_only_laid_out_anew_is_as_it_was(
    sam: Sam, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    segment_folder(sam, folder, out, **ARGUMENTS)
    path = out / "a.jpg.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))), "utf-8")
    assert segment_folder(sam, folder, out, **ARGUMENTS).resumed == GOOD


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
    assert list(find_sources([folder]).pictures) == sorted([*GOOD, *BAD])
    assert not (tmp_path / "out").exists()


def two(tmp_path: Path, first: str = "a.png", second: str = "b.png") -> tuple[Path, Path]:
    """A folder with two small pictures, and where the outputs go."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name, rows in ((first, 60), (second, 70)):
        Image.fromarray(skimage.data.astronaut()[:rows, :80]).save(folder / name, "PNG")
    return folder, tmp_path / "out"


def run(sam: Sam, folder: Path, out: Path, **changes: Any) -> FolderReport:
    return segment_folder(sam, folder, out, show_progress=False, **{**ARGUMENTS, **changes})


def failing_at_the_first(error: Exception) -> Any:
    """A ``generate`` that fails once."""
    real, failed = SamAutomaticMaskGenerator.generate, []

    def generate(
        self: SamAutomaticMaskGenerator, image: np.ndarray, **options: Any
    ) -> list[dict[str, Any]]:
        if not failed:
            failed.append(error)
            raise error
        return real(self, image, **options)

    return generate


def test_a_failure_that_nobody_foresaw_is_a_row_and_its_traceback_is_logged(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = two(tmp_path)
    bug = failing_at_the_first(ZeroDivisionError("a bug"))
    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", bug)
    report = run(sam, folder, out)
    assert list(report.segmented) == [Path("b.png")]
    assert "unexpected ZeroDivisionError: a bug" in report.failed[Path("a.png")]
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[0] is ZeroDivisionError
    assert str(folder / "a.png") in record.message
    assert not list(out.glob("a.png*"))


def test_memory_that_is_too_small_is_a_row(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = two(tmp_path)
    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", failing_at_the_first(MemoryError()))
    report = run(sam, folder, out)
    assert "does not fit into memory" in report.failed[Path("a.png")]
    assert list(report.segmented) == [Path("b.png")] and not caplog.records


def test_a_file_too_large_for_memory_is_a_row_and_not_read(sam: Sam, tmp_path: Path) -> None:
    folder, out = two(tmp_path)
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    report = run(sam, folder, out)
    assert list(report.segmented) == [Path("a.png"), Path("b.png")]
    assert "at most 1024 MiB are read" in report.failed[Path("huge.png")]


def test_a_tiny_picture_among_crops(sam: Sam, tmp_path: Path) -> None:
    folder, out = two(tmp_path)
    Image.new("RGB", (1, 1)).save(folder / "spacer.png")
    report = run(sam, folder, out, crop_n_layers=1, points_per_side=2)
    assert {Path("a.png"), Path("b.png")} <= set(report.segmented)


def test_names_of_every_kind(sam: Sam, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A name is bytes: not always UTF-8, and a newline in it does not make two lines."""
    latin = os.fsdecode(b"caf\xe9.png")
    folder, out = two(tmp_path, latin, "new\nline.png")
    (folder / (os.fsdecode(b"na\xefve") + ".jpg")).write_bytes(b"")
    report = segment_folder(sam, folder, out, **ARGUMENTS)
    assert set(report.segmented) == {Path(latin), Path("new\nline.png")} and len(report.failed) == 1
    text = (out / f"{latin}.json").read_bytes()
    dataset = json.loads(text.decode("utf-8"))
    assert dataset["images"][0]["file_name"] == latin  # so that it opens the picture again
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and any(r"new\nline.png: " in line for line in lines)
    assert run(sam, folder, out).resumed == sorted(report.segmented)


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_what_others_have_written_is_never_replaced(sam: Sam, tmp_path: Path, suffix: str) -> None:
    folder, out = two(tmp_path)
    mine = out / f"a.png.{suffix}"
    out.mkdir()
    if suffix == "png":
        Image.new("RGB", (3, 3)).save(mine)
    else:
        mine.write_text('{"annotations": []}')
    before = mine.read_bytes()
    report = run(sam, folder, out)
    assert "no earlier run has written it" in report.failed[Path("a.png")]
    assert mine.read_bytes() == before and list(report.segmented) == [Path("b.png")]
    mine.unlink()
    assert list(run(sam, folder, out).segmented) == [Path("a.png")]
    assert list(run(sam, folder, out, points_per_side=2).segmented) == [
        Path("a.png"),
        Path("b.png"),
    ]


def test_a_png_of_the_users_beside_its_namesake_is_a_picture(sam: Sam, tmp_path: Path) -> None:
    folder, _ = two(tmp_path, "a.jpg", "a.jpg.png")
    before = (folder / "a.jpg.png").read_bytes()
    report = run(sam, folder, folder)
    assert list(report.segmented) == [Path("a.jpg.png")]
    assert "no earlier run has written it" in report.failed[Path("a.jpg")]
    assert (folder / "a.jpg.png").read_bytes() == before
    assert run(sam, folder, folder).resumed == [Path("a.jpg.png")]


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_folder_in_an_outputs_place_is_a_row(sam: Sam, tmp_path: Path, suffix: str) -> None:
    folder, out = two(tmp_path)
    (out / f"a.png.{suffix}").mkdir(parents=True)
    report = run(sam, folder, out)
    assert list(report.segmented) == [Path("b.png")] and list(report.failed) == [Path("a.png")]


def test_a_name_that_leaves_no_room_for_a_suffix_is_a_row(sam: Sam, tmp_path: Path) -> None:
    long = "n" * 248 + ".png"
    folder, out = two(tmp_path, "a.png", long)
    report = run(sam, folder, out)
    assert "File name too long" in report.failed[Path(long)]
    assert list(report.segmented) == [Path("a.png")]


def test_a_picture_on_a_bad_sector_is_a_row(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = two(tmp_path)
    opened = Path.open

    def damaged(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "a.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", damaged)
    report = run(sam, folder, out)
    assert os.strerror(errno.EIO) in report.failed[Path("a.png")]
    assert list(report.segmented) == [Path("b.png")]


def test_arguments_are_recorded_as_json_has_them(sam: Sam, tmp_path: Path) -> None:
    folder, out = two(tmp_path)
    changes = {"points_per_side": None, "point_grids": [np.array([[0.25, 0.75]])]}
    assert len(run(sam, folder, out, **changes).segmented) == 2
    assert len(run(sam, folder, out, **changes).resumed) == 2
    other = {"points_per_side": None, "point_grids": [np.array([[0.25, 0.5]])]}
    assert len(run(sam, folder, out, **other).segmented) == 2
    arguments = json.loads((out / "a.png.json").read_text())["samtrt"]["arguments"]
    assert arguments["point_grids"] == [[[0.25, 0.5]]]


def test_a_full_disk_ends_the_run(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = two(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SamtrtError, match="No space left"):
        run(sam, folder, out)
    assert not out.exists()


class OneSquare:
    """Of three masks the second is a square; no logit of the others is near the threshold."""

    img_size, num_masks, parameters_sha256, note = 128, 4, "", ""
    device = torch.device("cpu")

    def __call__(self, picture: Any, prompts: Any, multimask_output: bool) -> Any:
        logits = torch.full((1, 3, 32, 32), -100.0)
        logits[:, 1, 8:16, 8:16] = 100.0
        return logits, torch.full((1, 3), 0.9)


def test_an_empty_masks_file_is_json(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stability would be 0 / 0, and JSON has no NaN."""
    folder, out = two(tmp_path)
    monkeypatch.setattr(Sam, "get_decoder", lambda *_: OneSquare())
    report = run(sam, folder, out, points_per_side=1, box_nms_thresh=1.0)
    assert not report.failed

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    text = (out / "a.png.json").read_text()
    annotations = json.loads(text, parse_constant=refuse)["annotations"]
    assert {annotation["stability_score"] for annotation in annotations} == {0.0, 1.0}
    for annotation in annotations:
        assert annotation["bbox"] == mask_utils.toBbox(annotation["segmentation"]).tolist()
    assert run(sam, folder, out, points_per_side=1, box_nms_thresh=1.0).resumed


def test_undefined_figures_are_null() -> None:
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[1:3, 2:5] = 1
    rle = mask_utils.encode(mask)
    record = {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "area": 6,
        "bbox": [2, 1, 2, 1],
        "stability_score": float("nan"),
    }
    (annotation,) = coco_dataset(Path("a.png"), (4, 6), [record])["annotations"]
    assert annotation["stability_score"] is None and annotation["bbox"] == [2, 1, 3, 2]
    assert coco_dataset(Path("a.png"), (4, 6), [])["annotations"] == []

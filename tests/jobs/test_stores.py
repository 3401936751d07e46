"""Targets in a store: a real S3 over HTTP, killed jobs, two jobs on one place."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_support import s3
from server_support import encoded, picture, tiny_model

from samtrt.cli import commands
from samtrt.console import run_script
from samtrt.errors import InputError, SamtrtError
from samtrt.jobs import targets
from samtrt.jobs.folder import segment_folder
from samtrt.jobs.windows import Windowing
from samtrt.sam import Sam, load_sam

# All that the command gives, in its order.
ARGUMENTS: dict[str, Any] = {
    "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.7,
    "points_per_side": 2, "points_per_batch": 64, "crop_n_layers": 0, "min_mask_region_area": 0,
}  # fmt: skip
OPTIONS = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
FORMATS = ["json", "png", "embeddings", "coco", "labels"]
COUNT = 4


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with s3() as files:
        files.mkdir("masks")
        yield files


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model(), "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    for number in range(COUNT):
        name = f"{'deep/' if number == 3 else ''}{number}.png"
        (folder / name).write_bytes(encoded(picture(number)))
    return folder


def job(sam: Sam, photos: Path, out: Path | str, **options: Any) -> Any:
    arguments = {"formats": FORMATS, **ARGUMENTS, **options}
    return segment_folder(sam, photos, out, show_progress=False, **arguments)


def in_store(files: Any, place: str) -> dict[str, bytes]:
    key = place.removeprefix("s3://")
    return {name.removeprefix(f"{key}/"): files.cat_file(name) for name in files.find(key)}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def expected(sam: Sam, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("out")
    job(sam, photos, out)
    found = on_disk(out)
    assert len(found) == COUNT * 4 + 1
    return found


def test_a_store_gets_the_files_of_a_folder(
    store: Any, sam: Sam, photos: Path, expected: dict[str, bytes]
) -> None:
    out = "s3://masks/all"
    report = job(sam, photos, out)
    assert in_store(store, out) == expected
    assert report.exported == ["s3://masks/all/coco.json", "s3://masks/all"]
    again = job(sam, photos, out)
    assert len(again.resumed) == COUNT and not again.segmented
    # Altered, cut, gone: made anew.
    store.pipe_file("masks/all/0.png.png", expected["0.png.png"][:-20] + bytes(20))
    store.pipe_file("masks/all/1.png.json", expected["1.png.json"][:-20])
    store.rm_file("masks/all/2.png.safetensors")
    again = job(sam, photos, out)
    assert sorted(map(str, again.segmented)) == ["0.png", "1.png", "2.png"]
    assert in_store(store, out) == expected


def test_embeddings_are_taken_from_a_store(
    store: Any, sam: Sam, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(sam, photos, "s3://masks/kept", formats=["embeddings"])
    here = job(sam, photos, tmp_path / "here", formats=["json"])
    store.rm_file("masks/kept/0.png.safetensors")
    monkeypatch.setattr(sam, "embed", lambda image: pytest.fail("encoded again"))
    found = job(sam, photos, tmp_path / "out", formats=["json"], embeddings="s3://masks/kept")
    assert "nothing is at s3://masks/kept/0.png.safetensors" in found.failed[Path("0.png")]
    assert len(found.segmented) == len(here.segmented) - 1
    for name in found.segmented:
        one, other = (
            json.loads((tmp_path / folder / f"{name}.json").read_text())["annotations"]
            for folder in ("here", "out")
        )
        assert one == other


def test_windows_into_a_store(store: Any, sam: Sam, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    options = {"formats": ["json"], "windowing": Windowing(96, 32)}
    job(sam, photos, tmp_path / "out", **options)
    job(sam, photos, "s3://masks/windows", **options)
    assert in_store(store, "s3://masks/windows") == on_disk(tmp_path / "out")


def test_a_killed_job_goes_on(
    store: Any, photos: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By signal 9, once after its first picture and once while formats are uploaded; its lock is
    taken over when it is no longer renewed."""
    out = "s3://masks/killed"
    arguments = [
        "everything", photos, "--params", tiny_model(), "--output-dir", out,
        "--format", ",".join(FORMATS), *OPTIONS,
    ]  # fmt: skip
    arguments = list(map(str, arguments))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    monkeypatch.setattr(targets, "RENEWED_EVERY", 0.4)
    monkeypatch.setattr(targets, "LEFT_AFTER", 1.5)
    for last in ("masks/killed/0.png.json", "masks/killed/coco.json"):
        script = (
            "import samtrt.jobs.targets as t; t.RENEWED_EVERY, t.LEFT_AFTER = 0.4, 1.5; "
            "import sys; from samtrt.console import run_script; from samtrt.cli import commands; "
            "sys.exit(run_script(lambda: commands.run(sys.argv[1:])))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], env=environ, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            end = time.monotonic() + 120
            while not store.exists(last) and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert run_script(lambda: commands.run(arguments)) == 0
    assert in_store(store, out) == expected


def test_two_jobs_on_one_place(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused while the first renews its lock, and gets in when that has gone."""
    monkeypatch.setattr(targets, "RENEWED_EVERY", 0.2)
    monkeypatch.setattr(targets, "LEFT_AFTER", 5.0)
    with targets.StoreTarget("s3://masks/two").claimed():
        start = time.monotonic()
        with (
            pytest.raises(SamtrtError, match="another process is writing s3://masks/two; wait"),
            targets.StoreTarget("s3://masks/two").claimed(),
        ):
            pass
        assert time.monotonic() - start < 5
    with targets.StoreTarget("s3://masks/two/").claimed():
        assert store.exists("masks/two/.samtrt-job.json")
    assert not store.exists("masks/two/.samtrt-job.json")


def test_a_job_that_was_taken_over_stops(
    store: Any, sam: Sam, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "RENEWED_EVERY", 0.05)
    embed, taken = sam.embed, []

    def taking_over(image: Any) -> Any:
        if not taken:
            taken.append(store.cat_file("masks/taken/.samtrt-job.json"))
            for beat in range(20):  # one may meet the first job between its look and its renewal
                another = json.dumps({"job": "another", "beat": beat}).encode()
                store.pipe_file("masks/taken/.samtrt-job.json", another)
                time.sleep(0.05)
        return embed(image)

    monkeypatch.setattr(sam, "embed", taking_over)
    with pytest.raises(SamtrtError, match="another job has taken s3://masks/taken over"):
        job(sam, photos, "s3://masks/taken", formats=["json"])
    assert list(in_store(store, "s3://masks/taken")) == [".samtrt-job.json"]
    assert b"another" in store.cat_file("masks/taken/.samtrt-job.json")


def test_what_cannot_be_is_told_in_a_line(
    store: Any, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.pipe_file("masks/others/0.png.json", b"{}")
    store.pipe_file("masks/mine/coco.json", b"{}")
    for out, options, message in (
        ("https://example.org/x", [], "cannot write to https://example.org/x; expected a folder"),
        ("s3://", [], "cannot write to s3://; expected a folder"),
        ("s3://none/x", [], "s3://none/x"),
        ("s3://masks/mine", ["--format", "coco"], "coco.json is there, and no earlier run"),
    ):
        arguments = [
            "everything", photos, "--params", tiny_model(), "--output-dir", out, *options
        ]  # fmt: skip
        assert run_script(lambda given=arguments: commands.run([str(one) for one in given])) != 0
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error
    sam = load_sam(tiny_model() / "engine", tiny_model(), "cpu")
    failed = job(sam, photos, "s3://masks/others", formats=["json"]).failed
    assert "s3://masks/others/0.png.json is there, and no earlier run" in failed[Path("0.png")]
    with pytest.raises(InputError, match="is the source and the output"):
        job(sam, "s3://masks/all", "s3://masks/all")  # type: ignore[arg-type]

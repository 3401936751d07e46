"""``samtrt everything`` as its user meets it: sources, formats, progress, refusals, hints."""

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from scripts import EXAMPLES
from server_support import encoded, picture, tiny_model

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.cli import commands, everything
from samtrt.console import run_script
from samtrt.formats.names import EXPORTS, FORMATS
from samtrt.jobs.ray import Workers

ALL_MASKS = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


@pytest.fixture(scope="module")
def model() -> Path:
    return tiny_model()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(picture(1)))
    (folder / "deep" / "b.jpg").write_bytes(encoded(picture(2), "JPEG"))
    return folder


def run(*arguments: Any) -> int:
    return run_script(lambda: commands.run(["everything", *map(str, arguments)]))


def test_every_format_at_once(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    has_pyarrow = importlib.util.find_spec("pyarrow") is not None
    kinds = [kind for kind in EXPORTS if kind != "parquet" or has_pyarrow]
    options = [photos, "--params", model, "--output-dir", out, *ALL_MASKS]
    assert run(*options, "--format", "json,png", "--format", ",".join(kinds)) == 0
    printed = capsys.readouterr().out
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {
        *(f"{name}.{end}" for name in ("a.png", "deep/b.jpg") for end in ("json", "png")),
        *(f"{name}.{end}" for name in ("a.png", "deep/b.jpg") for end in ("geojson", "labels.png")),
        *("coco.json", "coco-polygons.json", "cvat.xml", "label-studio.json"),
        *("yolo/data.yaml", "yolo/labels/a.txt", "yolo/labels/deep/b.txt"),
        *(["masks.tar", "masks.parquet"] if has_pyarrow else ["masks.tar"]),
    }
    for name in ("coco.json", "coco-polygons.json", "cvat.xml", "label-studio.json"):
        assert str(out / name) in printed
    dataset = json.loads((out / "coco.json").read_text())
    single = json.loads((out / "deep" / "b.jpg.json").read_text())
    assert [image["file_name"] for image in dataset["images"]] == ["a.png", "deep/b.jpg"]
    second = [one for one in dataset["annotations"] if one["image_id"] == 2]
    assert [one["segmentation"] for one in second] == [
        one["segmentation"] for one in single["annotations"]
    ]
    assert [one["score"] for one in second] == [
        one["predicted_iou"] for one in single["annotations"]
    ]

    # Without the model's work: made again from what is there.
    before = {name: (out / name).read_bytes() for name in written}
    for name in written:
        if not name.endswith((".jpg.json", ".jpg.png", "a.png.json", "a.png.png")):
            (out / name).unlink()
    assert run(*options, "--format", "png", "--format", ",".join(kinds)) == 0
    assert "resumed     2 pictures" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in written} == before


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], ["json", "png"]),
        (["--format", "json"], ["json"]),
        (["--format", "yolo, coco", "--format", "yolo"], ["yolo", "coco"]),
        (["--formats", "json", "png"], ["json", "png"]),
        (["--formats", "json", "--format", "cvat"], ["json", "cvat"]),
    ],
)
def test_formats_may_be_repeated_and_listed(given: list[str], expected: list[str]) -> None:
    parser = commands.make_parser()
    needed = ["everything", "photos", "--params", "p", "--output-dir", "o"]
    assert everything._formats(parser.parse_args([*needed, *given]).formats) == expected
    before = ["everything", *given[:2], "photos", "--params", "p", "--output-dir", "o"]
    if "--formats" not in given:
        assert parser.parse_args(before).sources == ["photos"]


def test_the_help_names_every_format(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")  # a line would end within a name
    with pytest.raises(SystemExit):
        commands.run(["everything", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in FORMATS:
        assert f"{name} (" in text


@pytest.mark.parametrize(
    "words, options",
    [
        (["--pred-iou-thresh is nan", "from 0 to 1"], ["--pred-iou-thresh", "nan"]),
        (["--pred-iou-thresh is 2", "from 0 to 1"], ["--pred-iou-thresh", "2"]),
        (["--stability-score-thresh is -1"], ["--stability-score-thresh", "-1"]),
        (["--box-nms-thresh is inf"], ["--box-nms-thresh", "inf"]),
        (["--points-per-side is 0", "from 1 to 1,000"], ["--points-per-side", "0"]),
        (["--points-per-side is 100,000"], ["--points-per-side", "100000"]),
        (["--points-per-batch is 0"], ["--points-per-batch", "0"]),
        (["--crop-n-layers is -1", "from 0 to 8"], ["--crop-n-layers", "-1"]),
        (["--crop-n-layers is 9"], ["--crop-n-layers", "9"]),
        (["--min-mask-region-area is -5"], ["--min-mask-region-area", "-5"]),
        (["--polygon-tolerance is nan"], ["--polygon-tolerance", "nan"]),
        (["--polygon-tolerance is -1"], ["--polygon-tolerance", "-1"]),
        (["unknown format tiff", "label-studio"], ["--format", "coco,tiff"]),
        (["no folder at", "none"], ["{tmp}/none"]),
        (["nothing matches", "*.gif"], ["{tmp}/photos/*.gif"]),
        (["would both be called a.png"], ["{tmp}/photos/a.png", "{tmp}/a.png"]),
        (["not a folder"], ["--output-dir", "{tmp}/a.png"]),
        (["no earlier run has written it"], ["--format", "coco"]),
    ],
)
def test_refusals_come_before_the_model(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    options: list[str],
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "coco.json").write_text("mine")
    options = [option.replace("{tmp}", str(tmp_path)) for option in options]
    sources = [] if not options[0].startswith("--") else [photos]
    needed = ["--params", tmp_path / "no model", "--output-dir", out]
    assert run(*sources, *needed, *options) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1 and "no model" not in printed.err
    for word in words:
        assert word in printed.err
    assert [path.name for path in out.iterdir()] == ["coco.json"]


def test_an_output_folder_that_cannot_be_written_is_noticed_beforehand(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    out = tmp_path / "new" / "out"
    assert run(photos, "--params", tmp_path / "no model", "--output-dir", out) == 1
    printed = capsys.readouterr().err
    assert f"cannot write into {out}: {tmp_path}: no write permission" in printed
    assert not out.parent.exists()


def test_a_hint_where_nothing_is_found_and_what_was_ignored(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "notes.txt").touch()
    options = ["--params", model, "--output-dir", tmp_path / "out", "--points-per-side", "1"]
    assert run(photos, *options, "--pred-iou-thresh", "1") == 0
    printed = capsys.readouterr().out
    assert "segmented   2 pictures, 0 masks" in printed
    assert "ignored     1 files: 1 .txt" in printed
    assert "note        nothing passed the filters; lower --pred-iou-thresh" in printed
    assert "note        seeded random weights" in printed
    assert "demo model" not in printed
    assert run(photos, *options, "--pred-iou-thresh", "1") == 0
    assert "nothing passed" not in capsys.readouterr().out  # that nothing was done is not a find


def test_the_demo_model_is_known_by_its_parameters() -> None:
    demo = read_checkpoint(EXAMPLES / "sam_models" / "sam_demo.pth")
    assert demo.sha256 == everything._DEMO_SHA256


def test_a_pipe_gets_whole_lines(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "cut.png").write_bytes(encoded(picture(3))[:500])
    done = in_a_process(photos, model, tmp_path / "out")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("image encoder: ")
    assert [line.split(": ")[0] for line in lines[1:]] == [
        "[1/3] a.png",
        "[2/3] cut.png",
        "[3/3] deep/b.jpg",
    ]
    assert "\r" not in done.stderr and "\x1b" not in done.stderr and "━" not in done.stderr


def test_workers_without_ray_are_refused_with_a_way_to_get_it(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = [photos, "--params", model, "--output-dir", tmp_path / "out", *ALL_MASKS]
    for asked in (["--workers", "2"], ["--ray", "auto"], ["--ray", "auto", "--workers", "1"]):
        assert run(*options, *asked) == 1
        printed = capsys.readouterr().err
        assert "need Ray Data, which is not installed" in printed
        assert "pip install -r " in printed and "requirements-ray.txt`" in printed
    assert run(*options, "--workers", "0") == 1
    assert "--workers is 0; expected a whole number from 1 to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*options, "--workers", "1", "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["segmented"], report["workers"], report["failed"]) == (2, 1, {})
    assert report["pictures_per_second"] == pytest.approx(2 / report["seconds"])
    assert ", 1 worker " in capsys.readouterr().out


def test_a_machine_with_several_gpus_uses_all_or_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without GPUs: which workers are chosen, not what they do."""

    def chosen(*asked: str) -> Any:
        line = ["everything", "photos", "--params", "p", "--output-dir", "o", *asked]
        return everything._workers(commands.make_parser().parse_args(line))

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("samtrt.jobs.ray.require_ray", lambda: None)
    assert chosen() == (Workers(), "")
    assert chosen("--workers", "1") == (None, "") == chosen("--backend", "cpu")
    assert chosen("--ray", "h:1", "--workers", "3") == (Workers(3, "h:1"), "")
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    workers, hint = chosen()
    assert workers is None and hint.startswith("one of 2 GPUs has worked; `")


def test_a_long_picture_says_how_far_it_is(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("samtrt.jobs.progress.SECONDS_A_LINE", 0.0)
    options = ["--params", model, "--output-dir", tmp_path / "out", "--points-per-side", "2"]
    assert run(photos / "a.png", *options, "--points-per-batch", "3", "--crop-n-layers", "1") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " points" in line]
    expected = [4 * crop + part for crop in range(5) for part in (3, 4)]
    assert lines == [f"[1/1] a.png: {done} of 20 points" for done in expected]


def test_a_terminal_shows_a_bar_and_whole_lines(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "cut.png").write_bytes(encoded(picture(3))[:500])
    screen = on_a_terminal(photos, model, tmp_path / "out")
    assert "of 4 points" in screen and "━" in screen
    for line in shown_lines(screen):
        assert not ("━" in line and ("image encoder" in line or "skipped" in line)), line
    assert "[2/3] cut.png: skipped: " in screen


def test_what_is_logged_meanwhile_stands_above_the_bar(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    broken = (
        "from samtrt.jobs.segmenting import Segmenter\n"
        "def fail(*_, **__): raise ZeroDivisionError('a bug')\n"
        "Segmenter.segment = fail\n"
    )
    screen = on_a_terminal(photos, model, tmp_path / "out", broken)
    lines = shown_lines(screen)
    assert any(line.startswith("unexpected error at ") for line in lines)
    assert "ZeroDivisionError: a bug" in lines
    assert not any("━" in line and "error" in line for line in lines)


def shown_lines(screen: str) -> list[str]:
    """What is drawn on a terminal, without its colours and movements."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen))


def in_a_process(photos: Path, model: Path, out: Path, before: str = "", **options: Any) -> Any:
    script = f"{before}\nfrom samtrt.cli.commands import main; main()"
    command = [sys.executable, "-c", script, "everything"]
    arguments = [photos, "--params", model, "--output-dir", out, *ALL_MASKS]
    options = options or {"capture_output": True}
    return subprocess.run([*command, *map(str, arguments)], text=True, timeout=120, **options)


def on_a_terminal(photos: Path, model: Path, out: Path, before: str = "") -> str:
    """What the command draws on its stderr where that is a terminal."""
    reader, writer = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        while True:
            try:
                if not (some := os.read(reader, 65_536)):
                    return
            except OSError:  # the last writer has gone
                return
            drawn.append(some)

    thread = threading.Thread(target=read)
    thread.start()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": writer}
    in_a_process(photos, model, out, before, **streams, env=environment)
    os.close(writer)
    thread.join()
    os.close(reader)
    return b"".join(drawn).decode()

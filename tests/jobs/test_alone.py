"""One process with threads, as a GPU is kept at work: the files of one picture after the other."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from server_support import encoded, picture, tiny_model

from samtrt.errors import SamtrtError
from samtrt.jobs import segmenting
from samtrt.jobs.folder import segment_folder
from samtrt.sam import Sam, load_sam

ARGUMENTS = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
COUNT = 40  # more than wait at a time


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02}.png").write_bytes(encoded(picture(number, 60, 80)))
    (folder / "07.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model(), "cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.*")}


def test_threads_leave_the_same_files(
    sam: Sam, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    expected = segment_folder(sam, photos, one, show_progress=False, **ARGUMENTS)
    embed, at_work, most = sam.embed, 0, 0
    lock = threading.Lock()

    def counted(image: np.ndarray) -> object:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.01)
        found = embed(image)
        with lock:
            at_work -= 1
        return found

    monkeypatch.setattr(sam, "embed", counted)
    monkeypatch.setitem(segmenting.AT_ONCE, "cpu", 2)
    report = segment_folder(sam, photos, two, show_progress=False, **ARGUMENTS)
    assert most == 2
    assert files(two) == files(one) and len(files(one)) == 2 * (COUNT - 1)
    assert list(report.segmented) == list(expected.segmented)
    assert report.failed == expected.failed and list(report.failed) == [Path("07.png")]
    again = segment_folder(sam, photos, two, show_progress=False, **ARGUMENTS)
    assert len(again.resumed) == COUNT - 1 and not again.segmented


def test_threads_end_with_the_job(
    sam: Sam, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of all writing ends it, and the pictures that are waiting are not begun."""
    monkeypatch.setitem(segmenting.AT_ONCE, "cpu", 2)
    before = threading.active_count()
    full = SamtrtError("cannot write: no space")
    full.__cause__ = OSError(28, "No space left on device")

    def write(*_: object) -> None:
        raise full

    monkeypatch.setattr("samtrt.jobs.targets.write_bytes", write)
    with pytest.raises(SamtrtError, match="no space"):
        segment_folder(sam, photos, tmp_path / "out", show_progress=False, **ARGUMENTS)
    assert threading.active_count() == before


def test_time_at_work_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A from 0 to 3, B from 1 to 7, C from 4 to 5; nobody from 7 to 9; D from 9 to 10."""
    moments = iter([0, 1, 3, 4, 5, 7, 9, 10])
    monkeypatch.setattr(segmenting.time, "perf_counter", lambda: next(moments))
    busy = segmenting._Busy()
    busy.begin()
    busy.begin()
    assert busy.end() == 3
    busy.begin()
    assert busy.end() == 2
    assert busy.end() == 2
    busy.begin()
    assert busy.end() == 1

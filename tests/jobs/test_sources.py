"""What a run's sources stand for: folders, files, patterns, links; and what is passed over."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtrt.errors import InputError
from samtrt.jobs.sources import counted, find_sources
from samtrt.pictures.reading import save_png


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory's folder ``photos``: two pictures, one of them deeper."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/deep/b.PNG"):
        picture(Path(name))
    return Path("photos")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def found(*sources: str | Path, out: str = "out") -> dict[str, str]:
    pictures = find_sources(sources, Path(out)).pictures
    return {name.as_posix(): file.as_posix() for name, file in pictures.items()}


def test_a_folder_and_what_is_passed_over_in_it(photos: Path) -> None:
    (photos / "notes.txt").touch()
    (photos / "more.TXT").touch()
    (photos / "README").touch()
    (photos / ".hidden.png").touch()
    picture(photos / ".cache" / "c.png")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "dead.jpg").symlink_to("nothing")
    sources = find_sources([photos], Path("out"))
    assert list(sources.pictures) == [Path("a.jpg"), Path("deep/b.PNG")]
    assert {name.as_posix(): why for name, why in sources.ignored.items()} == {
        "notes.txt": ".txt",
        "more.TXT": ".txt",
        "README": "without suffix",
        ".hidden.png": "hidden",
        ".cache": "hidden",
        "pipe.jpg": "no file",
        "dead.jpg": "link to nothing",
    }
    counts = counted(sources.ignored)
    assert counts == "2 .txt, 2 hidden, 1 link to nothing, 1 no file, 1 without suffix"


def test_files_folders_and_patterns_together(photos: Path) -> None:
    picture(Path("other.jpeg"))
    assert found("photos/deep/b.PNG") == {"b.PNG": "photos/deep/b.PNG"}
    assert found("other.jpeg", photos) == {
        "a.jpg": "photos/a.jpg",
        "deep/b.PNG": "photos/deep/b.PNG",
        "other.jpeg": "other.jpeg",
    }
    assert found("photos/*.jpg") == {"a.jpg": "photos/a.jpg"}
    assert set(found("photos/**/*.*")) == {"a.jpg", "b.PNG"}
    assert found("photos/*") == {"a.jpg": "photos/a.jpg", "b.PNG": "photos/deep/b.PNG"}
    assert set(found("*.jpeg", "photos/a.jpg", "photos/a.jpg")) == {"a.jpg", "other.jpeg"}
    picture(Path("odd[1].jpg"))
    assert found("odd[1].jpg") == {"odd[1].jpg": "odd[1].jpg"}


def test_a_file_that_is_named_needs_no_suffix(photos: Path) -> None:
    Path("scan").write_bytes((photos / "a.jpg").read_bytes())
    assert found("scan") == {"scan": "scan"}


def test_two_of_one_name_are_refused(photos: Path) -> None:
    picture(photos / "deep" / "a.jpg")
    with pytest.raises(InputError, match=r"would both be called a\.jpg; give the folder"):
        find_sources(["photos/a.jpg", "photos/deep/a.jpg"])
    assert set(found(photos, "photos/a.jpg")) == {"a.jpg", "deep/a.jpg", "deep/b.PNG"}


def test_links_are_followed_and_seen_once(photos: Path) -> None:
    picture(Path("elsewhere/c.png"))
    (photos / "linked").symlink_to(Path("elsewhere").absolute())
    (photos / "again").symlink_to("deep")
    (photos / "loop").symlink_to(".")
    (photos / "l.jpg").symlink_to("a.jpg")
    sources = find_sources([photos], Path("out"))
    names = [name.as_posix() for name in sources.pictures]
    assert names == ["a.jpg", "deep/b.PNG", "l.jpg", "linked/c.png"]
    assert {name.as_posix() for name in sources.ignored} == {"again", "loop"}
    Path("way").symlink_to("photos")
    assert "a.jpg" in found("way")


def test_a_link_to_an_outer_folder_ends(photos: Path) -> None:
    (photos / "up").symlink_to("..")
    assert set(found(photos)) == {"a.jpg", "deep/b.PNG"}
    picture(Path("aside/x.jpg"))
    assert set(found(photos)) == {"a.jpg", "deep/b.PNG", "up/aside/x.jpg"}


def test_outputs_among_the_pictures_are_none(photos: Path) -> None:
    picture(photos / "out" / "a.jpg.png")
    (photos / "to_out").symlink_to("out")
    assert set(found(photos, out="photos/out")) == {"a.jpg", "deep/b.PNG"}
    save_png(photos / "a.jpg.png", np.zeros((4, 4, 3), np.uint8), {"samtrt": "0"})
    (photos / "a.jpg.json").write_text("{}")
    sources = find_sources([photos], photos)
    written = {n.as_posix() for n, why in sources.ignored.items() if "earlier run" in why}
    assert written == {"a.jpg.png", "a.jpg.json"}


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", "no folder at nowhere, and no picture; give folders"),
        ("photos/*.gif", r"nothing matches photos/\*\.gif"),
        ("bare", r"no pictures in bare \(2 \.txt\); expected files such as"),
    ],
)
def test_nothing_to_work_on_is_one_line(photos: Path, source: str, message: str) -> None:
    Path("bare").mkdir()
    Path("bare/x.txt").touch()
    Path("bare/y.txt").touch()
    with pytest.raises(InputError, match=message):
        find_sources([source])


def test_a_folder_that_cannot_be_read_is_reported(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    sources = find_sources([photos])
    assert list(sources.pictures) == [Path("a.jpg")]
    assert "Permission denied" in sources.unreadable[Path("deep")]

"""Lists, tars, Parquet files and stores as sources: a real S3 over HTTP; refusals in one line."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from s3_support import s3
from server_support import encoded, picture, tiny_model

from samtrt.cli import commands
from samtrt.console import run_script
from samtrt.errors import InputError, SamtrtError
from samtrt.jobs.places import read_place
from samtrt.jobs.sources import find_sources

PICTURES = {f"{number}.png": encoded(picture(number)) for number in range(3)}
OPTIONS = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


def contents(*sources: Any, **options: Any) -> dict[str, bytes]:
    """Names → content, as a job reads it."""
    found = find_sources([str(source) for source in sources], **options).pictures
    return {name.as_posix(): read_place(place) for name, place in found.items()}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def segmented(*sources: Any, out: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """The masks of each picture by the command."""
    arguments = ["everything", *sources, "--params", tiny_model(), "--output-dir", out]
    arguments += ["--format", "json", *OPTIONS, *options]
    assert run_script(lambda: commands.run([str(argument) for argument in arguments])) == 0
    found = {}
    for path in sorted(out.rglob("*.json")):
        name = path.relative_to(out).as_posix().removesuffix(".json")
        found[name] = json.loads(path.read_text())["annotations"]
    return found


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "0.png").write_bytes(PICTURES["0.png"])
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(PICTURES["1.png"])
    listed = tmp_path / "in" / "pictures.txt"
    listed.write_text(f"\ufeff# mine\n\n  deep/0.png \n{elsewhere}\n")
    absolute = elsewhere.as_posix().lstrip("/")
    found = contents(listed)
    assert found == {"deep/0.png": PICTURES["0.png"], absolute: PICTURES["1.png"]}
    listed.write_text("deep/0.png\n../elsewhere.png\n")
    with pytest.raises(InputError, match=r"pictures.txt: line 2: '../elsewhere.png' is no name"):
        contents(listed)
    listed.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="cannot read the list"):
        contents(listed)


def test_a_webdatasets_shards(tmp_path: Path) -> None:
    members = {"a/0001.png": PICTURES["0.png"], "a/0001.cls": b"7", "./b.PNG": PICTURES["1.png"]}
    write_tar(tmp_path / "shard-0.tar", members)
    write_tar(tmp_path / "shard-1.tar", {"b.png": PICTURES["2.png"]})
    assert contents(tmp_path / "shard-*.tar") == {
        "shard-0/a/0001.png": PICTURES["0.png"],
        "shard-0/b.PNG": PICTURES["1.png"],
        "shard-1/b.png": PICTURES["2.png"],
    }
    ignored = find_sources([str(tmp_path / "shard-0.tar")]).ignored
    assert ignored == {Path("shard-0/a/0001.cls"): ".cls"}
    for name, members in (("up", {"../x.png": b""}), ("down", {"a/../../x.png": b""})):
        with pytest.raises(InputError, match="is no name below a folder"):
            contents(write_tar(tmp_path / f"{name}.tar", members))
    with pytest.raises(InputError, match=r"packed.tar is no tar without compression"):
        contents(write_tar(tmp_path / "packed.tar", {"a.png": b"1"}, "w:gz"))
    shard = tmp_path / "shard-1.tar"
    (place,) = find_sources([str(shard)]).pictures.values()
    os.truncate(shard, 600)
    with pytest.raises(InputError, match="was cut off meanwhile"):
        read_place(place)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(name: str, columns: dict[str, Any]) -> Path:
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        return path

    values = list(PICTURES.values())
    plain = write("plain", {"jpg": values, "__key__": ["a", "deep/b", "c"], "n": [1, 2, 3]})
    assert contents(plain) == {
        "plain/a": values[0], "plain/deep/b": values[1], "plain/c": values[2]
    }  # fmt: skip
    nested = [{"bytes": value, "path": f"{n}.png"} for n, value in enumerate(values)]
    faces = write("hf", {"image": nested, "label": [1, 2, 3]})  # as Hugging Face has them
    assert contents(faces) == {f"hf/{name}": value for name, value in PICTURES.items()}
    bare = write("bare", {"content": values})
    assert list(contents(bare)) == ["bare/00000001", "bare/00000002", "bare/00000003"]
    two = write("two", {"bytes": values, "mine": values[::-1]})
    assert list(contents(two, column="mine").values()) == values[::-1]
    (tmp_path / "1.png").write_bytes(values[1])
    paths = write("paths", {"image": ["1.png"], "path": ["not meant"]})
    assert contents(paths) == {"paths/1.png": values[1]}
    with pytest.raises(InputError, match=r"no column that holds pictures, only n, m; name"):
        contents(write("none", {"n": [1], "m": ["x"]}))
    with pytest.raises(InputError, match=r"no column x, only bytes, mine; name"):
        contents(two, column="x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"cannot read .*broken.parquet"):
        contents(tmp_path / "broken.parquet")
    empty = write("holes", {"bytes": [values[0], None], "path": ["a.png", "b.png"]})
    found = find_sources([str(empty)]).pictures
    with pytest.raises(InputError, match=r"row 1 of group 0 holds no bytes"):
        read_place(found[Path("holes/b.png")])


def test_a_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its rows are called; the first reading is for the names."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    keys, values = ["a", "d", "b", "c"], [*PICTURES.values(), encoded(picture(3))]
    table = tmp_path / "mixed.parquet"
    columns = {"__key__": keys, "bytes": values}
    parquet.write_table(pyarrow.table(columns), table, row_group_size=2)
    read, groups = parquet.ParquetFile.read_row_group, []

    def counted(file: Any, group: int, columns: list[str]) -> Any:
        groups.append((group, *columns))
        return read(file, group, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    found = segmented(table, out=tmp_path / "out")
    assert list(found) == ["mixed/a", "mixed/b", "mixed/c", "mixed/d"]
    assert groups == [(0, "__key__"), (1, "__key__"), (0, "bytes"), (1, "bytes")]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket with pictures in it."""
    with s3() as files:
        files.mkdir("photos")
        for name, content in PICTURES.items():
            files.pipe(f"photos/in/{'deep/' if name == '2.png' else ''}{name}", content)
        files.pipe("photos/in/notes.md", b"not a picture")
        files.pipe("photos/in/.hidden.png", b"not a picture")
        shard = io.BytesIO()
        with tarfile.open(fileobj=shard, mode="w") as tar:
            member = tarfile.TarInfo("x.png")
            member.size = len(PICTURES["0.png"])
            tar.addfile(member, io.BytesIO(PICTURES["0.png"]))
        files.pipe("photos/shards/0.tar", shard.getvalue())
        yield "s3://photos"


def test_s3_gives_the_masks_of_files(bucket: str, tmp_path: Path) -> None:
    local = tmp_path / "in"
    (local / "deep").mkdir(parents=True)
    for name, content in PICTURES.items():
        (local / ("deep" if name == "2.png" else "") / name).write_bytes(content)
    expected = segmented(local, out=tmp_path / "files")
    assert len(expected) == 3
    assert segmented(f"{bucket}/in", out=tmp_path / "s3") == expected
    both = {path.relative_to(tmp_path / "s3") for path in (tmp_path / "s3").rglob("*.json")}
    for path in both:  # byte for byte
        assert (tmp_path / "s3" / path).read_bytes() == (tmp_path / "files" / path).read_bytes()


def test_windows_of_an_object(bucket: str, tmp_path: Path) -> None:
    """Read a part at a time, and not fetched."""
    pytest.importorskip("rasterio")
    local = tmp_path / "0.png"
    local.write_bytes(PICTURES["0.png"])
    options = ["--window", "96"]
    expected = segmented(local, out=tmp_path / "file", options=options)
    assert segmented(f"{bucket}/in/0.png", out=tmp_path / "s3", options=options) == expected
    content = (tmp_path / "s3" / "0.png.json").read_bytes()
    assert content == (tmp_path / "file" / "0.png.json").read_bytes()
    assert len(list((tmp_path / "s3").iterdir())) == 1


def test_what_a_store_has(bucket: str, tmp_path: Path) -> None:
    found = find_sources([f"{bucket}/in"])
    assert [name.as_posix() for name in found.pictures] == ["0.png", "1.png", "deep/2.png"]
    assert found.ignored == {Path("notes.md"): ".md", Path(".hidden.png"): "hidden"}
    assert contents(f"{bucket}/in/*.png") == {name: PICTURES[name] for name in ("0.png", "1.png")}
    assert contents(f"{bucket}/in/deep/2.png") == {"2.png": PICTURES["2.png"]}
    assert contents(f"{bucket}/shards/0.tar") == {"0/x.png": PICTURES["0.png"]}
    listed = tmp_path / "list.txt"
    listed.write_text(f"{bucket}/in/0.png\n")
    assert contents(listed) == {"photos/in/0.png": PICTURES["0.png"]}


def test_what_a_store_has_not_is_told(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in s3://photos/nothing-\\*"):
        contents(f"{bucket}/nothing-*")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{bucket}/in/gone.png\n")
    (place,) = find_sources([str(listed)]).pictures.values()
    with pytest.raises(InputError, match=r"nothing is at s3://photos/in/gone.png"):
        read_place(place)


def test_a_client_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SamtrtError, match="nosuch"):
        contents("nosuch://bucket/a.png")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(SamtrtError, match=r"fsspec, which is not installed; run `.*install"):
        contents("s3://bucket/a.png")

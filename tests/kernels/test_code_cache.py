"""Kept machine code: what was written comes back, and nothing that another could have put there."""

import logging
import os
import time
from pathlib import Path

import pytest

from samtrt.kernels.hopper import code_cache
from samtrt.kernels.hopper.code_cache import CACHE_VARIABLE, cache_folder, keep_code, read_code

CODE = bytes(range(256)) * 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    code_cache._warn.cache_clear()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "below" / "kernels"))
    return tmp_path / "below" / "kernels"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_comes_back_and_is_its_users_alone(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keep_code("linear-1", CODE)
    finally:
        os.umask(before)
    assert read_code("linear-1") == CODE
    assert read_code("linear-2") is None
    (file,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", ["bit", "cut", "longer", "empty"])
def test_damaged_code_is_not_run(
    folder: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_code("linear-1", CODE)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    changed = {
        "bit": bytes(content),
        "cut": file.read_bytes()[:-7],
        "longer": file.read_bytes() + b"0",
        "empty": b"",
    }
    file.write_bytes(changed[change])
    assert read_code("linear-1") is None
    assert f"{file} is damaged" in caplog.text
    keep_code("linear-1", CODE)
    assert read_code("linear-1") == CODE


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes here")
@pytest.mark.parametrize("whose", ["file", "folder"])
@pytest.mark.parametrize("fault", ["group", "world", "owner"])
def test_what_others_can_write_is_not_run(
    folder: Path,
    whose: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep_code("linear-1", CODE)
    (file,) = folder.iterdir()
    place = file if whose == "file" else folder
    if fault == "owner":
        # (who may not give files away sees them from the other side: with another user's eyes)
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        if os.getuid() == 0:
            os.chown(place, 4343, -1)
    else:
        place.chmod(place.stat().st_mode | (0o020 if fault == "group" else 0o002))
    with caplog.at_level(logging.WARNING):
        assert read_code("linear-1") is None
        assert read_code("linear-1") is None
    (record,) = caplog.records  # once
    expected = "belongs to another user" if fault == "owner" else "can be written by other users"
    assert expected in record.getMessage() and "\n" not in record.getMessage()


def test_what_was_not_used_for_long_goes(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    old = time.time() - (code_cache.UNUSED_DAYS + 1) * 86400
    used = time.time() - (code_cache.UNUSED_DAYS - 1) * 86400
    for name, modified in (("old", old), ("used", used)):
        keep_code(name, CODE)
        os.utime(folder / f"{name}.cubin", (modified, modified))
    (folder / "notes.txt").write_text("somebody else's")
    os.utime(folder / "notes.txt", (old, old))
    assert read_code("used") == CODE  # which counts as a use
    assert time.time() - (folder / "used.cubin").stat().st_mtime < 60
    keep_code("new", CODE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "new.cubin",
        "notes.txt",
        "used.cubin",
    ]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/samtrt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "samtrt"

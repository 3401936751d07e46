"""The kernels' version follows their source."""

import shutil
from pathlib import Path

import pytest

from samtrt.kernels import digest


def digest_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(digest, "FOLDER", folder)
    return digest.kernels_digest.__wrapped__()


def test_any_source_file_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = digest.FOLDER
    folder = tmp_path / "elsewhere"
    shutil.copytree(original, folder)
    assert digest_of(folder, monkeypatch) == digest_of(original, monkeypatch)
    seen = {digest_of(folder, monkeypatch)}
    for name in ("cublaslt.py", "triton/norm.py", "hopper/device/primitives.cuh"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        seen.add(digest_of(folder, monkeypatch))
    (folder / "cublaslt.py").rename(folder / "renamed.py")
    seen.add(digest_of(folder, monkeypatch))
    assert len(seen) == 5
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__" / "norm.pyc").write_bytes(b"no source")
    assert digest_of(folder, monkeypatch) in seen

"""Engine folders: whole or absent, and refused where they do not belong."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import tiny_config

from samtrt import files
from samtrt.encoders import engine
from samtrt.encoders.engine import (
    ENGINE_FILE,
    NOT_CHECKED,
    PASSED,
    SIDECAR_FILE,
    EngineInfo,
    ParityResult,
    check_engine,
    read_engine_info,
    writing_engine,
)
from samtrt.errors import EngineError, SamtrtError

INFO = EngineInfo("cpu", tiny_config(), "bf16", 4, "a" * 64, note="for a test")


def write(folder: Path, info: EngineInfo = INFO, content: bytes = b"engine") -> EngineInfo:
    with writing_engine(folder) as engine:
        engine.file.write_bytes(content)
        engine.info = info
    return engine.info


def refusal(folder: Path, **arguments: object) -> str:
    with pytest.raises(EngineError) as caught:
        check_engine(folder, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sidecar_comes_back(tmp_path: Path) -> None:
    info = replace(
        INFO,
        backend="tensorrt",
        library="tensorrt",
        library_version="10.3.0",
        compute_capability="9.0",
        attention="plain",
        build_seconds=12.5,
        parity=ParityResult(PASSED, 0.004, 0.998, 2),
    )
    written = write(tmp_path, info)
    assert (
        read_engine_info(tmp_path) == written == replace(info, engine_sha256=written.engine_sha256)
    )


def test_an_engine_that_belongs_here_is_taken(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert check_engine(tmp_path, INFO.parameters_sha256) == written
    assert written.parity.status == NOT_CHECKED


def test_a_failed_build_leaves_the_earlier_engine(tmp_path: Path) -> None:
    earlier = write(tmp_path)

    with pytest.raises(EngineError, match="no"), writing_engine(tmp_path) as engine:
        engine.file.write_bytes(b"half an eng")
        raise EngineError("no")
    assert check_engine(tmp_path) == earlier
    assert {path.name for path in tmp_path.iterdir()} == {ENGINE_FILE, SIDECAR_FILE}


def test_a_build_that_cannot_write_its_sidecar_leaves_the_earlier_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = write(tmp_path)

    def full(*_: object) -> None:
        raise SamtrtError("disk full")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(SamtrtError, match="disk full"):
        write(tmp_path, content=b"new engine")
    assert check_engine(tmp_path) == earlier
    assert {path.name for path in tmp_path.iterdir()} == {ENGINE_FILE, SIDECAR_FILE}


@pytest.mark.parametrize("name", [ENGINE_FILE, SIDECAR_FILE])
def test_an_incomplete_folder_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    assert f"{name} is missing; make one with `" in refusal(tmp_path)


def test_another_parameter_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    assert "another parameter set" in refusal(tmp_path, parameters_sha256="b" * 64)


def test_an_altered_engine_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / ENGINE_FILE).write_bytes(b"enginE")
    assert "was altered after its build" in refusal(tmp_path)


def test_another_library_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setattr(engine, "PACKED_VERSION", "2")
    assert "built by samtrt 1, and samtrt 2 is installed" in refusal(tmp_path)


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it raises ModuleNotFoundError
    write(tmp_path, replace(INFO, backend="tensorrt", library="tensorrt"))
    assert "no tensorrt is installed here" in refusal(tmp_path)


def test_another_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, replace(INFO, backend="cuda", compute_capability="9.0"))
    monkeypatch.setattr(engine, "compute_capability", lambda device=None: "8.9")
    assert "for compute capability 9.0, and this GPU has 8.9" in refusal(tmp_path)
    monkeypatch.setattr(engine, "compute_capability", lambda device=None: "9.0")
    check_engine(tmp_path)


def test_a_machine_without_gpu_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write(tmp_path, replace(INFO, backend="cuda"))
    assert "needs an NVIDIA GPU" in refusal(tmp_path)
    assert "--backend cpu" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 0}, "version"),
        ({"backend": "abacus"}, "backend"),
        ({"precision": "fp64"}, "precision"),
        ({"config": None}, "config"),
        ({"parity": {"state": "passed"}}, "parity.status"),
        ({"surplus": 1}, "surplus"),
        ({"max_batch_size": 10**9}, "max_batch_size"),
        ({"max_batch_size": 10**400}, "max_batch_size"),
        ({"max_batch_size": True}, "max_batch_size"),
        ({"max_batch_size": "2"}, "max_batch_size"),
        ({"build_seconds": float("nan")}, "build_seconds"),
        ({"config": {**INFO.config.to_json(), "num_heads": 0}}, "config.num_heads"),
        ({"config": {**INFO.config.to_json(), "num_heads": 3}}, "not a multiple of num_heads 3"),
        ({"config": {**INFO.config.to_json(), "img_size": 1 << 40}}, "config.img_size"),
        ({"config": {**INFO.config.to_json(), "layer_norm_eps": -1.0}}, "config.layer_norm_eps"),
        ({"library": "tensorrt"}, "library tensorrt for the cpu backend"),
        ({"compute_capability": "9"}, "compute_capability"),
        ({"engine_sha256": "../x"}, "engine_sha256"),
    ],
    ids=str,
)
def test_a_damaged_sidecar_is_refused(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    write(tmp_path)
    path = tmp_path / SIDECAR_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = refusal(tmp_path)
    assert "is damaged or of another samtrt version" in message and field in message


@pytest.mark.parametrize(
    "content", [b"[]", b"", b"{", b"\xff", b"[" * 100_000, b"null", b" " * (1 << 21)], ids=len
)
def test_a_sidecar_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / SIDECAR_FILE).write_bytes(content)
    assert "is damaged or of another samtrt version" in refusal(tmp_path)


def test_a_sidecar_names_nothing_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_by_a_file.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "engine"
    write(folder, replace(INFO, backend="tensorrt", library="tensorrt"))
    path = folder / SIDECAR_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"library": "named_by_a_file"}))
    assert "library: String should match" in refusal(folder)
    assert "named_by_a_file" not in sys.modules

"""export_decoder.py as its users call it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from oracle import tiny_config

from samtrt.checkpoint import random_parameters, save_parameters
from samtrt.decoder import OnnxDecoder
from samtrt.scripts import run_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "examples/sam/export_decoder.py"
    spec = importlib.util.spec_from_file_location("export_decoder_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("params")
    save_parameters(random_parameters(tiny_config(), 0), folder)
    return folder


def export(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, params: Path, *flags: object
) -> int:
    monkeypatch.setattr(
        sys, "argv", ["export_decoder.py", "--params", str(params), *map(str, flags)]
    )
    return run_script(script.main)


def test_default_output_is_in_the_parameter_folder(
    script: ModuleType,
    params: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert export(script, monkeypatch, params) == 0
    out, err = capfd.readouterr()
    assert err == ""  # nothing of the exporter's own
    assert [line.split()[0] for line in out.splitlines()] == ["mask", "file", "note", "written"]
    assert OnnxDecoder(params / "mask_decoder.onnx").num_masks == 4


def test_return_single_mask(
    script: ModuleType, params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new" / "single.onnx"
    assert export(script, monkeypatch, params, "--return-single-mask", "--output", output) == 0
    assert OnnxDecoder(output).num_masks == 1
    assert [path.name for path in output.parent.iterdir()] == ["single.onnx"]


def test_errors_are_one_line(
    script: ModuleType,
    params: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export(script, monkeypatch, tmp_path / "absent") == 1
    assert "params_convert.py" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert export(script, monkeypatch, params, "--output", tmp_path / "file" / "d.onnx") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: cannot write") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

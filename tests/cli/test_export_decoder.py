"""export_decoder.py as its users call it."""

from pathlib import Path

import pytest
from oracle import tiny_config
from scripts import call_script, load_script

from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.decoders.onnx import OnnxDecoder

SCRIPT = load_script("export_decoder")


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("params")
    save_parameters(random_parameters(tiny_config(), 0), folder)
    return folder


def test_default_output_is_in_the_parameter_folder(
    params: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call_script(SCRIPT, "--params", params)
    assert (status, err) == (0, "")
    assert capfd.readouterr() == ("", "")  # nothing of the exporter's own
    assert [line.split()[0] for line in out.splitlines()] == ["mask", "file", "note", "written"]
    assert OnnxDecoder(params / "mask_decoder.onnx").num_masks == 4


def test_return_single_mask_in_metas_contract(params: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "single.onnx"
    status, out, _ = call_script(
        *(SCRIPT, "--params", params, "--return-single-mask", "--output", output),
        *("--contract", "meta"),
    )
    assert status == 0 and "one mask a prompt" in out
    assert "contract      meta: masks, iou_predictions, low_res_masks" in out.splitlines()
    assert OnnxDecoder(output).num_masks == 1
    assert [path.name for path in output.parent.iterdir()] == ["single.onnx"]


def test_options_that_the_contract_does_not_have(params: Path, tmp_path: Path) -> None:
    output = tmp_path / "decoder.onnx"
    status, out, err = call_script(
        SCRIPT, "--params", params, "--use-stability-score", "--output", output
    )
    assert (status, out) == (1, "")
    assert "contract 'meta'" in err and err.count("\n") == 1
    assert not output.exists()


def test_missing_parameters(tmp_path: Path) -> None:
    status, out, err = call_script(SCRIPT, "--params", tmp_path / "absent")
    assert (status, out) == (1, "")
    assert "convert --checkpoint CHECKPOINT.pth" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(params: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "decoder.onnx"
    status, out, err = call_script(SCRIPT, "--params", params, "--output", output)
    assert (status, out) == (1, "")
    assert err.startswith("error: cannot write") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

"""build.py: parameters in, a checked engine folder out, or one line and nothing."""

import errno
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import tiny_config
from scripts import call_script, load_script

from samtrt.building import build
from samtrt.building.build import BuildOptions, ParityError, build_encoder
from samtrt.building.gate_pictures import drawn_pictures
from samtrt.checkpoints.parameters import Parameters, random_parameters, save_parameters
from samtrt.encoders import packed as packing
from samtrt.encoders.cpu import has_fast_bf16
from samtrt.encoders.engine import (
    FAILED,
    NOT_CHECKED,
    PASSED,
    SKIPPED,
    EngineInfo,
    ParityResult,
    read_engine_info,
)
from samtrt.encoders.load import load_encoder
from samtrt.encoders.packed import read_packed, write_packed
from samtrt.errors import EngineError, InputError
from samtrt.files import read_whole
from samtrt.pictures.reading import save_png

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETERS = random_parameters(tiny_config(), seed=6)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("params")
    save_parameters(PARAMETERS, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    save_png(path, np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))
    return [path]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("build")


def error_line(result: tuple[int, str, str]) -> str:
    """The one line of a script that failed."""
    status, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and out == "" and "Traceback" not in err
    return lines[0]


def test_script_builds_checks_and_reports(script: ModuleType, params: Path, tmp_path: Path) -> None:
    status, out, _ = call_script(
        script, "--params", params, "--output-dir", tmp_path, "--backend", "cpu",
        "--precision", "fp32", "--max-batch-size", 3,
    )  # fmt: skip
    assert status == 0
    info = read_engine_info(tmp_path)
    assert (info.backend, info.precision, info.max_batch_size) == ("cpu", "fp32", 3)
    assert (info.parameters_sha256, info.config) == (PARAMETERS.sha256, tiny_config())
    assert info.parity.status == PASSED
    assert str(info.parity) in out and PARAMETERS.note in out
    assert load_encoder(tmp_path)(torch.zeros(3, 3, 128, 128)).shape == (3, 256, 8, 8)


def test_skipping_the_gate_is_recorded(script: ModuleType, params: Path, tmp_path: Path) -> None:
    flags = ("--params", params, "--output-dir", tmp_path, "--backend", "cpu")
    status, out, _ = call_script(script, *flags, "--skip-parity-gate")
    assert status == 0 and "skipped" in out
    assert read_engine_info(tmp_path).parity == ParityResult(SKIPPED)


def test_a_tensorrt_engine_is_not_called_checked(
    trt: ModuleType, script: ModuleType, params: Path, tmp_path: Path
) -> None:
    if trt.__name__ != "tensorrt_rtx" or torch.cuda.is_available():
        pytest.skip("for machines that build engines and cannot run them")
    flags = ("--params", params, "--output-dir", tmp_path, "--backend", "tensorrt")
    status, out, _ = call_script(script, *flags, "--attention", "plain")
    info = read_engine_info(tmp_path)
    assert status == 0 and "not checked on hardware" in out
    assert info.parity == ParityResult(NOT_CHECKED)
    assert (info.library, info.library_version) == (trt.__name__, trt.__version__)
    assert (info.precision, info.attention, info.compute_capability) == ("fp16", "plain", None)
    assert info.build_seconds > 0
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        load_encoder(tmp_path)


def fail_in(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> None:
    """Lets the gate find the engines of these precisions wrong."""

    def judge(encoder: object, *_: object) -> ParityResult:
        bad = encoder.precision in precisions  # type: ignore[attr-defined]
        return ParityResult(FAILED if bad else PASSED, 0.05 if bad else 0.001, 0.97, 1)

    monkeypatch.setattr(build, "check_parity", judge)
    monkeypatch.setattr("samtrt.encoders.cpu.has_fast_bf16", lambda: True)


def test_a_failed_gate_fails_the_build_and_keeps_the_earlier_engine(
    script: ModuleType, params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--params", params, "--output-dir", tmp_path, "--backend", "cpu")
    call_script(script, *flags, "--precision", "fp32", "--skip-parity-gate")
    earlier = read_engine_info(tmp_path)
    fail_in(monkeypatch, "bf16")
    line = error_line(call_script(script, *flags, "--precision", "bf16"))
    assert "did not pass the parity gate" in line and "5.000% (relative L2)" in line
    assert read_engine_info(tmp_path) == earlier


def test_what_a_failed_gate_proposes_exists_for_that_engine() -> None:
    info = EngineInfo("tensorrt", tiny_config(), "fp16", 1, PARAMETERS.sha256, library="tensorrt")
    result = ParityResult(FAILED, 0.00148, 0.9987, 2, 0.9632)
    assert "; build with another --precision, or keep" in str(ParityError(result, info))
    info = replace(info, plugins="all", plugins_sha256="0" * 64)  # they are fp16 alone
    assert "; build with --backend cuda or --plugins none, or" in str(ParityError(result, info))


def test_auto_precision_takes_fp32_where_bf16_does_not_hold_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_in(monkeypatch, "bf16")
    with caplog.at_level("INFO"):
        info = build_encoder(PARAMETERS, tmp_path, [], BuildOptions("cpu"))
    assert (info.precision, info.parity.status) == ("fp32", PASSED)
    assert "cpu backend, bf16" in caplog.text and "bf16 does not hold parity" in caplog.text


def test_auto_precision_takes_bf16_where_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch)
    assert build_encoder(PARAMETERS, tmp_path, [], BuildOptions("cpu")).precision == "bf16"


def test_auto_precision_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch, "bf16", "fp32")
    with pytest.raises(ParityError):
        build_encoder(PARAMETERS, tmp_path, [], BuildOptions("cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto takes the GPU")
def test_auto_backend_without_gpu_is_the_cpu(tmp_path: Path, pictures: list[Path]) -> None:
    info = build_encoder(PARAMETERS, tmp_path, pictures)
    assert (info.backend, info.precision) == ("cpu", "bf16" if has_fast_bf16() else "fp32")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "cpu", "--precision", "fp16"], "computes in bf16 or fp32, not in fp16"),
        (
            ["--backend", "cuda", "--precision", "fp32"],
            "computes in fp16 or bf16 or fp8, not in fp32",
        ),
        (["--backend", "cpu", "--precision", "fp8"], "computes in bf16 or fp32, not in fp8"),
        (["--backend", "tensorrt", "--precision", "fp8"], "fp16 or bf16 or fp32, not in fp8"),
        (["--backend", "cpu", "--fp8-keep", "3"], "--fp8-keep are for --precision fp8"),
        (["--backend", "cpu", "--calibrate", str(Path(__file__).parent)], "no pictures in"),
        (["--backend", "cpu", "--calibrate", "nowhere"], "--calibrate nowhere is no folder"),
        (["--backend", "cpu", "--max-batch-size", "0"], "at least 1, not 0"),
        (["--backend", "cpu", "--attention", "plain"], "are for --backend tensorrt"),
        (["--backend", "cpu", "--compute-capability", "8.9"], "are for --backend tensorrt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_impossible_combinations_are_refused(
    script: ModuleType, params: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    result = call_script(script, "--params", params, "--output-dir", tmp_path, *flags)
    assert message in error_line(result)
    assert list(tmp_path.iterdir()) == []


def test_no_tensorrt_but_asked_for(
    script: ModuleType, params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    flags = ("--params", params, "--output-dir", tmp_path, "--backend", "tensorrt")
    line = error_line(call_script(script, *flags))
    assert "TensorRT is not installed" in line and "--backend cuda or cpu" in line
    assert list(tmp_path.iterdir()) == []


def test_no_parameters(script: ModuleType, tmp_path: Path) -> None:
    line = error_line(call_script(script, "--params", tmp_path / "nowhere"))
    assert "make one of a checkpoint with `" in line and "convert" in line


def test_without_pictures_the_gate_draws_its_own(tmp_path: Path) -> None:
    info = build_encoder(PARAMETERS, tmp_path, options=BuildOptions("cpu", "fp32"))
    assert (info.parity.status, info.parity.pictures) == (PASSED, 2)
    first, second = drawn_pictures()
    assert first.shape != second.shape and first.dtype == second.dtype == np.uint8
    assert all(len(np.unique(p.reshape(-1, 3), axis=0)) > 1000 for p in (first, second))
    assert np.array_equal(first, drawn_pictures()[0])


def test_a_picture_that_cannot_be_read_is_told_before_the_build(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "writing_engine", lambda *_: pytest.fail("it was built"))
    with pytest.raises(InputError, match="no picture at"):
        build_encoder(
            PARAMETERS, tmp_path, [*pictures, tmp_path / "none.png"], BuildOptions("cpu", "fp32")
        )


def test_a_folder_that_cannot_be_written(script: ModuleType, params: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    flags = ("--params", params, "--output-dir", tmp_path / "file" / "engine", "--backend", "cpu")
    assert "cannot write" in error_line(call_script(script, *flags))


def test_a_full_disk(
    script: ModuleType, params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing, "write_tensors", full)
    flags = ("--params", params, "--output-dir", tmp_path, "--backend", "cpu")
    assert "No space left on device" in error_line(call_script(script, *flags))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_packed_parameters_round_matrices_only(tmp_path: Path, precision: str) -> None:
    tensors = PARAMETERS.encoder()
    info = EngineInfo("cpu", tiny_config(), precision, 2, "a" * 64)
    write_packed(tmp_path / "packed", tensors, info)
    packed = read_packed(read_whole(tmp_path / "packed"), info)
    assert packed.keys() == tensors.keys()
    for name, tensor in packed.items():
        original = torch.from_numpy(tensors[name])
        matrix = name.endswith("weight") and original.ndim > 1
        assert tensor.dtype == (packing.DTYPES[precision] if matrix else torch.float32), name
        assert torch.equal(tensor, original.to(tensor.dtype))


def test_a_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    tensors = dict(PARAMETERS.tensors)
    name = "image_encoder.blocks.1.mlp.lin1.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 2] = 70_000
    large: Parameters = replace(PARAMETERS, tensors=tensors)
    with pytest.raises(EngineError, match=r"blocks\.1\.mlp\.lin1\.weight does not fit fp16"):
        build_encoder(large, tmp_path, [], BuildOptions("cuda", "fp16", skip_parity_gate=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [BuildOptions(compute_capability="8.9"), BuildOptions(attention="plain")]
)
def test_auto_takes_the_backend_that_knows_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: BuildOptions
) -> None:
    """Only TensorRT builds for another GPU, or with attention of two kinds."""

    class ReachedError(Exception):
        pass

    def build_engine(*_: object, **given: object) -> bytes:
        assert given["compute_capability"] == options.compute_capability
        assert given["attention"] == options.attention
        raise ReachedError

    monkeypatch.setattr("samtrt.encoders.tensorrt.builder.build_engine", build_engine)
    with pytest.raises(ReachedError):
        build_encoder(random_parameters(tiny_config()), tmp_path / "engine", [], options)

"""How the CUDA C++ kernels are compiled and kept; no GPU is needed."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from hopper_kernels import machine_code  # (skips where NVRTC is missing)

from samtrt.errors import EngineError
from samtrt.kernels.hopper import compiler as program
from samtrt.kernels.hopper.compiler import CACHE_VARIABLE, Program, cache_folder
from samtrt.kernels.hopper.linear import MIDDLE, NORMALISED, NORMALISED_GELU, RESIDUAL, TALL, WIDE
from samtrt.kernels.hopper.window_attention import window_attention_program


def example() -> Program:
    return MIDDLE.program(NORMALISED, torch.float16)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that are compiled from now on."""
    compiled: list[str] = []

    def compile_one(self: Program) -> bytes:
        compiled.append(self.function_name)
        return b"machine code"

    monkeypatch.setattr(Program, "compile", compile_one)
    return compiled


def test_machine_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kernels"))
    compiled = counted(monkeypatch)
    assert example().machine_code() == example().machine_code() == b"machine code"
    assert compiled == ["linear"]
    # Another type is another program.
    MIDDLE.program(NORMALISED, torch.bfloat16).machine_code()
    assert compiled == ["linear", "linear"]
    assert len(list((tmp_path / "kernels").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    compiled = counted(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert example().machine_code() == example().machine_code() == b"machine code"
    assert compiled == ["linear", "linear"]
    assert CACHE_VARIABLE in caplog.text


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/samtrt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "samtrt"


def test_missing_nvrtc_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    program.bindings.cache_clear()
    with pytest.raises(EngineError, match="cuda-bindings") as error:
        program.require_compiler()
    assert "\n" not in str(error.value)


def test_a_refused_source_is_one_line() -> None:
    broken = Program("linear.cu", (("WG_ROWS", 128),), (160,), torch.float16)
    with pytest.raises(EngineError, match=r"NVRTC refuses linear\.cu") as error:
        broken.compile()
    assert "\n" not in str(error.value)


def test_kernels_of_a_block_fit_the_instruction_cache() -> None:
    """ViT-H's, which run in turn: what does not fit is fetched anew in each launch, some 50 ns for
    128 bytes (docs/performance.md). The cache has about 128 KB."""
    dtype, parts = torch.float16, 8
    programs = (
        WIDE.program(NORMALISED, dtype, parts),
        window_attention_program(80, 14, dtype),
        TALL.program(RESIDUAL, dtype),
        WIDE.program(NORMALISED_GELU, dtype, parts),
    )
    assert sum(machine_code(program)["bytes"] for program in programs) < 104 * 1024

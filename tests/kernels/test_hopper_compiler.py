"""How the CUDA C++ kernels are compiled and kept; no GPU is needed."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hopper_kernels import machine_code  # (skips where NVRTC is missing)

from samtrt.errors import EngineError
from samtrt.kernels.hopper import code_cache, compiler, launch
from samtrt.kernels.hopper.code_cache import CACHE_VARIABLE
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.linear import MIDDLE, NORMALISED, NORMALISED_GELU, RESIDUAL, TALL, WIDE
from samtrt.kernels.hopper.window_attention import window_attention_program


class Status(int):
    """A driver's, as ``cuda.bindings`` gives it."""

    name = "INVALID_IMAGE"


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
    code_cache._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert example().machine_code() == example().machine_code() == b"machine code"
    assert compiled == ["linear", "linear"]
    assert CACHE_VARIABLE in caplog.text


@pytest.mark.parametrize("changed", ["options", "version", "source"])
def test_what_makes_the_code_is_in_its_name(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kernels"))
    compiled = counted(monkeypatch)
    example().machine_code()
    if changed == "options":
        monkeypatch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, "--use_fast_math"))
    elif changed == "version":
        driver, _ = compiler.bindings()
        nvrtc = SimpleNamespace(nvrtcVersion=lambda: (0, 99, 1))
        monkeypatch.setattr(compiler, "bindings", lambda: (driver, nvrtc))
    else:
        monkeypatch.setattr(Program, "source", property(lambda self: "another"))
    example().machine_code()
    assert len(compiled) == 2


@pytest.mark.parametrize("attempts", [1, 2])
def test_code_that_does_not_load_is_compiled_anew(
    attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept whole, but the driver refuses it; where it refuses the new code too, that is said."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kernels"))
    compiled = counted(monkeypatch)
    example().machine_code()
    loads = []

    def load(code: bytes) -> tuple[Any, str]:
        loads.append(code)
        refused = len(loads) <= attempts
        return Status(refused), "module"

    driver = SimpleNamespace(
        cuModuleLoadData=load,
        cuModuleGetFunction=lambda module, name: (Status(False), f"{module} {name.decode()}"),
        cuFuncSetAttribute=lambda *arguments: (Status(False),),
        CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8),
    )
    _, nvrtc = compiler.bindings()
    monkeypatch.setattr(compiler, "bindings", lambda: (driver, nvrtc))
    monkeypatch.setattr(launch, "bindings", lambda: (driver, nvrtc))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=int))
    launch._loaded.cache_clear()
    if attempts == 2:
        with pytest.raises(EngineError, match="cuModuleLoadData failed: INVALID_IMAGE"):
            launch._function(example(), 0, 1024)
    else:
        assert launch._function(example(), 0, 1024) == "module linear"
    launch._loaded.cache_clear()
    assert compiled == ["linear", "linear"] and len(loads) == 2


def test_missing_nvrtc_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    compiler.bindings.cache_clear()
    with pytest.raises(EngineError, match="cuda-bindings") as error:
        compiler.require_compiler()
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

"""The kernels that wait at random (benchmarks/stress.py), and that the ordinary ones never do."""

import dataclasses
import re

import pytest
import torch
from hopper_kernels import assembly

from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.global_attention import global_attention_program
from samtrt.kernels.hopper.linear import MIDDLE, NORMALISED, RESIDUAL, TALL
from samtrt.kernels.hopper.window_attention import window_attention_program

PROGRAMS = {
    "pingpong": MIDDLE.program(NORMALISED, torch.float16),
    "cooperative": TALL.program(RESIDUAL, torch.float16),
    "window": window_attention_program(64, 14, torch.float16),
    "global": global_attention_program(64, torch.float16),
}


class WithoutHooks(Program):
    """Lines stay where they are, since the machine code tells them."""

    @property
    def source(self) -> str:  # type: ignore[override]
        return super().source.replace("    jitter();\n", "\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_ordinary_machine_code_does_not_know_the_hooks(name: str) -> None:
    program = PROGRAMS[name]
    bare = WithoutHooks(**{f.name: getattr(program, f.name) for f in dataclasses.fields(program)})
    assert "    jitter();\n" in program.source and "    jitter();\n" not in bare.source
    assert program.compile() == bare.compile()
    assert "NANOSLEEP" not in assembly(program)


@pytest.mark.parametrize("name", PROGRAMS)
def test_jitter_stands_before_every_operation(name: str) -> None:
    program = PROGRAMS[name]
    code = assembly(dataclasses.replace(program, constants=(*program.constants, ("JITTER", 1))))

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", code))

    arrivals, tries = count(r"SYNCS\.ARRIVE"), count(r"SYNCS\.PHASECHK")
    copies = count("UTMALDG") + count("UTMASTG")
    assert min(arrivals, tries, copies) > 0
    operations = (
        arrivals
        + tries // 2  # a wait tries once, then in a loop
        + count(r"BAR\.")
        - 1  # __syncthreads, before all others
        + copies
        + count(r"WARPGROUP\.ARRIVE")  # before products
    )
    assert count("NANOSLEEP") >= operations

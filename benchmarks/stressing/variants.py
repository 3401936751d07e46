"""The kernels for Hopper as they are, waiting at random, and with an old fault put back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property

import torch

from samtrt.kernels.hopper import global_attention, linear, window_attention
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.launch import Launch, launch

JITTER_SEED = 1
Change = Callable[[Program], Program]

# linear_epilogue.cuh, release_others_place.
WAIT_AND_ARRIVE = """\
    barrier_wait(&shared.full[ring.stage], ring.parity);
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[ring.stage]);
"""
ARRIVE_WITHOUT_A_WAIT = """\
    if (threadIdx.x % WARPGROUP == 0) barrier_arrive(&shared.empty[ring.stage], WARPGROUP / WARP);
"""


class RacingProgram(Program):
    """The residual layers as they once were: a warpgroup gives the other's place free too early."""

    @cached_property
    def source(self) -> str:
        text = super().source
        assert text.count(WAIT_AND_ARRIVE) == 1, "release_others_place has changed"
        return text.replace(WAIT_AND_ARRIVE, ARRIVE_WITHOUT_A_WAIT)


def ordinary(program: Program) -> Program:
    return program


def jittered(program: Program) -> Program:
    return replace(program, constants=(*program.constants, ("JITTER", JITTER_SEED)))


def racing(program: Program) -> Program:
    """What is no linear layer stays as it is."""
    if program.function_name != "linear":
        return program
    return RacingProgram(**{field.name: getattr(program, field.name) for field in fields(program)})


def racing_jittered(program: Program) -> Program:
    return racing(jittered(program))


VARIANTS: dict[str, Change] = {
    "ordinary": ordinary,
    "jittered": jittered,
    "racing": racing,
    "racing, jittered": racing_jittered,
}


@contextmanager
def programs_changed(change: Change) -> Iterator[None]:
    """Meanwhile all launches are of the changed programs."""
    modules = (linear, window_attention, global_attention)

    def changed(work: Launch, device: torch.device) -> None:
        launch(replace(work, program=change(work.program)), device)

    for module in modules:
        module.launch = changed  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.launch = launch  # type: ignore[attr-defined]

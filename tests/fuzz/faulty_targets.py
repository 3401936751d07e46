"""Readers that do what no reader may, for the harness to see."""

import os
import signal
from collections.abc import Callable

import numpy as np
from harness import SAME, Target, WrongError

from samtrt.errors import InputError


def refuse(generator: np.random.Generator) -> str:
    raise InputError(f"{generator.random()} is no input; give another")


def refuse_in_lines(_: np.random.Generator) -> str:
    raise InputError("this is\nno line")


def fail(_: np.random.Generator) -> str:
    raise KeyError("nobody foresaw it")


def accept_another(_: np.random.Generator) -> str:
    raise WrongError("other pixels")


def hang(_: np.random.Generator) -> str:
    while True:
        pass


def crash(_: np.random.Generator) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return SAME


def take_all_memory(_: np.random.Generator) -> str:
    return str(len(bytearray(1 << 40)))


def _target(case: Callable[[np.random.Generator], str]) -> Target:
    return Target(case.__name__, 1, lambda _: case)


TARGETS = {
    case.__name__: _target(case)
    for case in (
        refuse, refuse_in_lines, fail, accept_another, hang, crash, take_all_memory
    )
}  # fmt: skip

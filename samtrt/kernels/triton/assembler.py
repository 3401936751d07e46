"""Which ptxas assembles the kernels.

Triton 3.6 assembles for Hopper with ptxas 12.8. Its code for some series of matrix products reads
a uniform register that nothing has written, and takes a matrix descriptor from it: values are wrong
or the kernel faults. (Seen in the SASS of the window attention; on an H200 the values were wrong,
and right with DISABLE_PTXAS_OPT=1.) ptxas 12.9 and 13.0 do not do that. Triton ships a 12.9 beside
the other for Blackwell, and it assembles for Hopper as well.
"""

import os
from typing import Any

import triton

from samtrt.errors import EngineError

SOUND_RELEASE = (12, 9)
VARIABLE = "TRITON_PTXAS_PATH"


def sound_ptxas(nvidia: Any) -> str | None:
    """The path of Triton's first ptxas that is new enough; None where there is none.

    Args:
        nvidia: ``triton.knobs.nvidia``.
    """
    for tool in (nvidia.ptxas, nvidia.ptxas_blackwell):
        if tuple(map(int, tool.version.split("."))) >= SOUND_RELEASE:
            return str(tool.path)
    return None


def use_sound_ptxas() -> None:
    """Points Triton at that ptxas, in this process; a path that the user has set is kept."""
    knobs = getattr(triton, "knobs", None)
    if knobs is not None and VARIABLE not in os.environ:
        path = sound_ptxas(knobs.nvidia)
        if path is not None:
            os.environ[VARIABLE] = path


def require_sound_ptxas() -> None:
    """For GPUs whose code the fault concerns.

    Raises:
        EngineError: Triton would assemble with a release that is too old.
    """
    knobs = getattr(triton, "knobs", None)
    version = knobs.nvidia.ptxas.version if knobs is not None else "of an old Triton"
    if knobs is None or tuple(map(int, version.split("."))) < SOUND_RELEASE:
        raise EngineError(
            f"ptxas {version} miscompiles the kernels of the cuda backend on this GPU; install "
            f"triton 3.6 or newer, or set {VARIABLE} to ptxas 12.9 or newer"
        )

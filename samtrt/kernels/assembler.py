"""Which ptxas assembles the kernels.

Triton 3.6 assembles for Hopper with ptxas 12.8, whose code for some products that follow each other
reads a uniform register that nothing has written: a matrix descriptor, so the result is wrong or
the kernel faults. (Seen in the SASS of the window attention, and on an H200: wrong values, correct
with DISABLE_PTXAS_OPT=1.) ptxas 12.9 and 13.0 do not have that fault, and Triton ships a newer one
for Blackwell.
"""

import os

import triton

SOUND_RELEASE = (12, 9)


def release(version: str) -> tuple[int, ...]:
    """``"12.9"`` as (12, 9)."""
    return tuple(int(part) for part in version.split("."))


def use_sound_ptxas() -> None:
    """Points Triton at its newer ptxas, in this process, where the default one is too old.

    ``TRITON_PTXAS_PATH``, when set, is respected.
    """
    tools = getattr(triton, "knobs", None)
    if tools is None or "TRITON_PTXAS_PATH" in os.environ:
        return
    if release(tools.nvidia.ptxas.version) >= SOUND_RELEASE:
        return
    newer = tools.nvidia.ptxas_blackwell
    if release(newer.version) >= SOUND_RELEASE:
        os.environ["TRITON_PTXAS_PATH"] = newer.path

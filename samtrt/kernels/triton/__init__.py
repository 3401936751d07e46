"""Triton kernels of the fused encoder runtime (``samtrt.encoders.cuda``).

Each module holds kernels and, beside them, one Python function a kernel that checks shapes,
chooses the launch grid and names the lines of Meta's encoder it stands for. Where Triton has no
GPU, ``TRITON_INTERPRET=1`` runs the same kernels on the CPU; the tests do. ``ahead_of_time`` makes
PTX of those that TensorRT launches.

Asynchronous copies (``num_stages``, tensor descriptors) and the barriers around them are the
compiler's: it orders them, nothing here does. ``benchmarks/stress.py`` repeats these kernels, too.
"""

import importlib.util

from samtrt.errors import EngineError
from samtrt.hints import install

if importlib.util.find_spec("triton") is None:
    raise EngineError(
        f"the cuda backend needs Triton, which is not installed; run `{install('gpu')}`"
    )

from samtrt.kernels.triton.assembler import use_sound_ptxas

use_sound_ptxas()

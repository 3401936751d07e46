"""The GPU kernels: in Triton for every GPU from compute capability 8.0 on, in CUDA C++ for Hopper.

They import errors and files only. Entry points: one function a kernel, in ``triton/*.py`` and
``hopper/*.py``; ``cublaslt.Product``.
"""

import importlib.util

# Where Triton is not installed (Windows), torch's own operators do the same, more slowly.
HAS_TRITON = importlib.util.find_spec("triton") is not None

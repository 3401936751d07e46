"""The GPU kernels: in Triton for every GPU from compute capability 8.0 on, in CUDA C++ for Hopper.

They import errors and files only. Entry points: one function a kernel, in ``triton/*.py`` and
``hopper/*.py``; ``cublaslt.Product``.
"""

"""Kernels in CUDA C++ for Hopper's own units: wgmma, the copy engine, dependent launches.

They replace their Triton namesakes on compute capability 9.0, where those stay far from the chip
(docs/performance.md); the Triton kernels stay the portable path. NVRTC compiles them when an
encoder starts; the machine code is kept in a cache folder.
"""

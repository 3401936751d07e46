"""The sections of ``benchmarks/tune.py``."""

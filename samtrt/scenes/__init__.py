"""Procedural pictures with exact masks, a pure function of a seed and an index.

Imports nothing of the package. Entry points: ``drawing.generate``, ``drawing.examples``.
"""

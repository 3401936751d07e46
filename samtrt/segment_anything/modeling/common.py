"""Layers beside torch's own (Meta's ``modeling/common.py``)."""

from samtrt.modeling.layers import LayerNorm2d, MLPBlock

__all__ = ["LayerNorm2d", "MLPBlock"]

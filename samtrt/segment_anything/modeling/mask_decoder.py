"""Embeddings to masks (Meta's ``modeling/mask_decoder.py``)."""

from samtrt.modeling.layers import LayerNorm2d
from samtrt.modeling.mask_decoder import MLP, MaskDecoder

__all__ = ["MLP", "LayerNorm2d", "MaskDecoder"]

"""The mask decoder's transformer (Meta's ``modeling/transformer.py``)."""

from samtrt.modeling.layers import MLPBlock
from samtrt.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

__all__ = ["Attention", "MLPBlock", "TwoWayAttentionBlock", "TwoWayTransformer"]

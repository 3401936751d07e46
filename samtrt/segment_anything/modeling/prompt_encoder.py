"""Prompts to embeddings (Meta's ``modeling/prompt_encoder.py``)."""

from samtrt.modeling.layers import LayerNorm2d
from samtrt.modeling.prompt_encoder import PositionEmbeddingRandom, PromptEncoder

__all__ = ["LayerNorm2d", "PositionEmbeddingRandom", "PromptEncoder"]

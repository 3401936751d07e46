"""The model (Meta's ``modeling/sam.py``)."""

from samtrt.sam import Sam
from samtrt.segment_anything.modeling.image_encoder import ImageEncoderViT
from samtrt.segment_anything.modeling.mask_decoder import MaskDecoder
from samtrt.segment_anything.modeling.prompt_encoder import PromptEncoder

__all__ = ["ImageEncoderViT", "MaskDecoder", "PromptEncoder", "Sam"]

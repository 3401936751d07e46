"""The model's parts (Meta's ``segment_anything.modeling``)."""

from samtrt.segment_anything.modeling.image_encoder import ImageEncoderViT
from samtrt.segment_anything.modeling.mask_decoder import MaskDecoder
from samtrt.segment_anything.modeling.prompt_encoder import PromptEncoder
from samtrt.segment_anything.modeling.sam import Sam
from samtrt.segment_anything.modeling.transformer import TwoWayTransformer

__all__ = ["ImageEncoderViT", "MaskDecoder", "PromptEncoder", "Sam", "TwoWayTransformer"]

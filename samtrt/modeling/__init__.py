"""What SAM is, once: image encoder, prompt encoder and mask decoder, as in the paper.

Imports checkpoints (sizes) and knows no back end. Entry points: ``image_encoder.ImageEncoderViT``,
``bound.bound_encoder`` and ``prompted_decoder.build_mask_decoder``.
"""

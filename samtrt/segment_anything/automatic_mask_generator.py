"""Masks of everything in a picture (Meta's ``automatic_mask_generator.py``)."""

from samtrt.masks.automatic import SamAutomaticMaskGenerator

__all__ = ["SamAutomaticMaskGenerator"]

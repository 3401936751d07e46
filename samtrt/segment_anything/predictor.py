"""Masks of one picture at a time (Meta's ``predictor.py``)."""

from samtrt.masks.predictor import SamPredictor
from samtrt.segment_anything.modeling import Sam
from samtrt.segment_anything.utils.transforms import ResizeLongestSide

__all__ = ["ResizeLongestSide", "Sam", "SamPredictor"]

"""Masks of one picture at a time (Meta's ``predictor.py``)."""

from samtrt.masks.predictor import SamPredictor

__all__ = ["SamPredictor"]

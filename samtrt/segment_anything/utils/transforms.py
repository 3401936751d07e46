"""Pictures, points and boxes into the model's frame (Meta's ``utils/transforms.py``)."""

from samtrt.pictures.transforms import ResizeLongestSide

__all__ = ["ResizeLongestSide"]

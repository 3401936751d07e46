"""The mask decoder as it is exported (Meta's ``utils/onnx.py``)."""

from samtrt.decoders.sam_onnx_model import SamOnnxModel
from samtrt.segment_anything.modeling import Sam
from samtrt.segment_anything.utils.amg import calculate_stability_score

__all__ = ["Sam", "SamOnnxModel", "calculate_stability_score"]

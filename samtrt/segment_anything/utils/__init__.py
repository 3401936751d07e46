"""Meta's ``segment_anything.utils``: transforms, automatic masks' functions, the ONNX model."""

"""What turns an embedded picture and prompts into mask logits: torch, ONNX Runtime, CUDA graphs.

Imports modeling, checkpoints and kernels. Entry points: ``protocol.Decoder``, ``load.load_decoder``
and ``export.export_decoder``.
"""

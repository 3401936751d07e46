"""What turns an embedded picture and prompts into masks: torch, ONNX Runtime, CUDA graphs.

Imports the embedded picture (``encoders.embedded``), modeling, checkpoints and kernels. Entry
points: ``prompts.Prompts``, ``protocol.Decoder``, ``load.load_decoder``, ``upscaling.cut_out`` and
``export.export_decoder``.
"""

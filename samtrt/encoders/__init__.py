"""What runs the image encoder: TensorRT, our CUDA runtime, or the CPU, behind one protocol.

Imports modeling, checkpoints and kernels. Entry points: ``load.load_encoder`` for an engine folder,
``load.encoder_from_parameters``, and ``protocol.ImageEncoder``.
"""

# What an engine may be. Here, because the console names them without torch.
BACKENDS = ("tensorrt", "cuda", "cpu")
PRECISIONS = ("fp16", "bf16", "fp32", "fp8")
ATTENTIONS = ("fused", "plain")
# Of a TensorRT engine: those that a library of ours brings, and PTX that the engine itself holds.
LIBRARY_PLUGINS = ("attention", "all")
PLUGINS = ("none", *LIBRARY_PLUGINS, "attention-aot")

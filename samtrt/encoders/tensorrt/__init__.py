"""The image encoder as a TensorRT network: library found, network defined, engine built and run.

Imports modeling and the encoders' protocol and engine folder. Entry points:
``builder.define_network`` and ``runtime.TensorRTImageEncoder``.
"""

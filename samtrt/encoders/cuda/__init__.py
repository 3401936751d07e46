"""The cuda runtime: the image encoder as a straight schedule of kernels in one CUDA graph.

``encoder.py`` is what every GPU shares. The transformer blocks, where the time goes, are a trunk;
there are two: ``hopper.py`` on compute capability 9.0, ``portable.py`` from 8.0 on. They stand
beside ``ImageEncoderViT.forward`` of segment_anything/modeling/image_encoder.py, and each launch
names the lines it replaces.

FP8 (``hopper.py`` only): ``quantisation.py`` is the plan of scales, ``calibration.py`` makes it of
pictures, ``rounding.py`` rounds the weights, and ``fp8_reference.py`` is all of it in torch.
"""

from samtrt.encoders.cuda.encoder import FusedImageEncoder

__all__ = ["FusedImageEncoder"]

"""Mask decoders from files."""

import os
from pathlib import Path

import torch

from samtrt.checkpoints.parameters import load_parameters
from samtrt.decoders.onnx import OnnxDecoder
from samtrt.decoders.torch import TorchDecoder


def load_decoder(
    path: str | os.PathLike[str], device: torch.device | str | None = None
) -> TorchDecoder | OnnxDecoder:
    """Loads a mask decoder: an ONNX file, or a parameter folder for the torch one.

    Args:
        device: where the torch decoder computes; None for a GPU where there is one. ONNX Runtime
            chooses by its own providers.

    Raises:
        EngineError: an ONNX file that is missing, damaged or not a SAM mask decoder.
        CheckpointError: a parameter folder that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return TorchDecoder.from_parameters(load_parameters(path), device)
    return OnnxDecoder(path)

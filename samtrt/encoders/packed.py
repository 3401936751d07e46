"""Packed parameters: the engine file of the back ends that need no compiler (``cpu``, ``cuda``).

A safetensors file of the image encoder's tensors under Meta's names without ``image_encoder.``:
matrices are stored in the engine's precision, all that is small keeps float32.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from samtrt.errors import EngineError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_MATRICES = tuple(
    f"{layer}.weight" for layer in ("qkv", "proj", "lin1", "lin2", "neck.0", "neck.2")
)


def write_packed(path: str | Path, tensors: Mapping[str, np.ndarray], precision: str) -> None:
    """Writes the encoder's tensors (``Parameters.encoder()``) in that precision.

    Raises:
        EngineError: a value is beyond the precision's range (float16 ends at 65,504).
        OSError: the file cannot be written.
    """
    packed = {}
    for name, array in tensors.items():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        dtype = DTYPES[precision] if name.endswith(_MATRICES) else torch.float32
        packed[name] = tensor.to(dtype)
        if not torch.isfinite(packed[name]).all():
            raise EngineError(
                f"parameter {name} does not fit {precision}: its largest magnitude is "
                f"{tensor.abs().max():.3g}; build with --precision bf16"
            )
    try:
        save_file(packed, path)
    except SafetensorError as error:  # it hides the operating system's error in its text
        raise OSError(str(error)) from error


def read_packed(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a packed engine, memory-mapped, on the CPU.

    Raises:
        EngineError: the file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise EngineError(f"cannot read packed parameters from {path}: {error}") from error

"""Packed parameters: the engine file of the back ends that need no compiler (``cpu``, ``cuda``).

A safetensors file of the image encoder's tensors under Meta's names without ``image_encoder.``:
matrices are stored in the engine's precision, all that is small keeps float32. Its metadata say
what else the output depends on, so that the sidecar cannot say otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.shapes import ENCODER_PREFIX, infer_encoder_config
from samtrt.checkpoints.tensor_file import FLOATS, Dtype, RawTensor, read_tensors, write_tensors
from samtrt.encoders.engine import EngineInfo
from samtrt.errors import CheckpointError, EngineError
from samtrt.files import writing

# Of what is not in e4m3 in an fp8 engine: fp16.
DTYPES = {
    "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.float16
}  # fmt: skip
_STORED: dict[torch.dtype, Dtype] = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
_LOADED = {stored: dtype for dtype, stored in _STORED.items()}
_CONTENT = "samtrt"  # key of the metadata
_MATRICES = tuple(
    f"{layer}.weight" for layer in ("qkv", "proj", "lin1", "lin2", "neck.0", "neck.2")
)


def write_packed(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    info: EngineInfo,
    as_they_are: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the encoder's tensors (``Parameters.encoder()``) in the engine's precision.

    Args:
        as_they_are: further ones, each in its own type.

    Raises:
        EngineError: a value is beyond the precision's range (float16 ends at 65,504).
        SamtrtError: the file cannot be written.
    """
    packed = {}
    for name, array in tensors.items():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        dtype = DTYPES[info.precision] if name.endswith(_MATRICES) else torch.float32
        stored = tensor.to(dtype)
        if not torch.isfinite(stored).all():
            raise EngineError(
                f"parameter {name} does not fit {info.precision}: its largest magnitude is "
                f"{tensor.abs().max():.3g}; build with --precision bf16"
            )
        packed[name] = _raw(stored)
    packed |= {name: _raw(tensor) for name, tensor in (as_they_are or {}).items()}
    with writing(path):
        write_tensors(path, packed, {_CONTENT: json.dumps(info.content)})


def _raw(tensor: Tensor) -> RawTensor:
    content = tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    return RawTensor(_STORED[tensor.dtype], tuple(tensor.shape), content)


def read_packed(content: bytearray, info: EngineInfo) -> dict[str, Tensor]:
    """The tensors of a packed engine's content, in its memory.

    Args:
        info: the sidecar, which is held against the content.

    Raises:
        EngineError: the content is damaged, or is not what the sidecar says.
    """
    try:
        raw, metadata = read_tensors(content, _LOADED if info.fp8 is not None else FLOATS)
        said = json.loads(metadata[_CONTENT]) if _CONTENT in metadata else None
    except ValueError as error:
        raise EngineError(
            f"the engine's packed parameters are damaged ({error}); build it again"
        ) from error
    found = said if said is not None else {**info.content, **_inferred(raw, info)}
    if found != info.content:
        faults = [key for key, value in info.content.items() if found.get(key) != value]
        raise EngineError(
            f"the engine's sidecar was altered after its build: its {' and '.join(faults)} "
            "is not that of the packed parameters; build it again"
        )
    return {
        name: torch.from_numpy(tensor.content).view(_LOADED[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in raw.items()
    }


def _inferred(raw: Mapping[str, RawTensor], info: EngineInfo) -> dict[str, object]:
    """Sizes and precision as the tensors show them, for files without metadata."""
    try:
        config = infer_encoder_config({ENCODER_PREFIX + n: t.shape for n, t in raw.items()})
    except CheckpointError as error:
        raise EngineError(f"the engine's packed parameters are unusable: {error}") from error
    dtypes = {tensor.dtype for name, tensor in raw.items() if name.endswith(_MATRICES)}
    is_precise = dtypes == {_STORED[DTYPES[info.precision]]}
    return {"config": config.to_json(), "precision": info.precision if is_precise else ""}

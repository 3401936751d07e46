"""Checkpoints of a SAM, whoever wrote them, under Meta's names; no code of theirs is run."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from samtrt.checkpoints import family, huggingface
from samtrt.checkpoints.diagnosis import require_sam
from samtrt.checkpoints.parameters import Parameters, is_parameter_folder, load_parameters
from samtrt.checkpoints.pickled import DOWNLOAD, damaged, load_pickled
from samtrt.checkpoints.shapes import ENCODER_PREFIX, check_tensors
from samtrt.checkpoints.tensor_file import ITEM_BYTES, RawTensor, is_tensor_file, read_tensors
from samtrt.checkpoints.unwrapping import (
    listed,
    shown,
    unwrapped,
    without_parallel,
    without_prefix,
)
from samtrt.errors import CheckpointError
from samtrt.files import read_whole, sha256_of_file

logger = logging.getLogger(__name__)

_ANCHOR = ENCODER_PREFIX + "pos_embed"  # a name that every SAM has once
_TORCH_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def read_parameters(path: str | Path) -> Parameters:
    """Reads what holds a SAM: a parameter folder, or whatever ``read_checkpoint`` takes.

    Raises:
        CheckpointError: it is missing, or cannot be used.
    """
    path = Path(path)
    if is_parameter_folder(path) or (not path.exists() and not path.suffix):
        return load_parameters(path)
    return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> Parameters:
    """Reads a checkpoint of a SAM, of any encoder size.

    Meta's ``.pth`` and what is saved in its layout, and Hugging Face's: a folder
    (``model.safetensors`` or ``pytorch_model.bin``, in one file or in shards, whose ``config.json``
    must agree with the tensors), or one ``.safetensors`` or ``.bin`` file. Files are read into
    memory, and no code from them is run (``weights_only=True``). A state_dict in a training
    program's wrapper (``model``, ``state_dict``, …) is taken out of it; what all names begin with
    (``sam.``) and what parallel modules put into them (``module.``) is taken off; a second copy of
    the weights beside them (EMA) is left out. Separate ``q``, ``k`` and ``v`` become ``qkv``. All
    this is logged.

    Raises:
        CheckpointError: the file is missing, truncated, holds something else than tensors, or is
            another model's; missing, unexpected or wrongly shaped keys are listed.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path)
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}; {DOWNLOAD}")
        tensors, sha256 = _read_file(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {error.filename or path}: {error.strerror}; give a checkpoint that can "
            "be read"
        ) from error
    return _parameters_of(tensors, path, sha256)


def _read_folder(folder: Path) -> Parameters:
    config = huggingface.read_config(folder)
    files = huggingface.weights_files(folder)
    if not files:
        raise CheckpointError(
            f"{folder} is neither a parameter folder nor a Hugging Face model, and holds "
            f"{listed(sorted(p.name for p in folder.iterdir()) or ['nothing'])}; give a folder "
            f"with {' or '.join(huggingface.WEIGHTS_FILES[:2])} in it, or the checkpoint's file"
        )
    read = {file: _read_file(file) for file in files}
    tensors = huggingface.merged({file: part for file, (part, _) in read.items()}, folder)
    sha256 = huggingface.digest_of([digest for _, digest in read.values()])
    parameters = _parameters_of(tensors, folder, sha256)
    if config is not None:
        huggingface.check_config(config, parameters.encoder_config, folder)
    return parameters


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """A file's tensors under its own names, and its SHA-256."""
    with path.open("rb") as file:
        if is_tensor_file(file.read(16)):
            return _read_tensor_file(path)
        file.seek(0)
        sha256 = sha256_of_file(file)
        file.seek(0)
        loaded = load_pickled(file, path)
        size = file.seek(0, 2)
    tensors = unwrapped(loaded, path)
    _check_storage(tensors, size, path)
    return tensors, sha256


def _read_tensor_file(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    content = read_whole(path)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        raw, _ = read_tensors(content, tuple(ITEM_BYTES))
    except ValueError as error:
        raise damaged(path, f"truncated or damaged ({error})") from error
    return {name: _to_torch(tensor) for name, tensor in raw.items()}, sha256


def _to_torch(raw: RawTensor) -> torch.Tensor:
    dtype = _TORCH_DTYPES[raw.dtype]
    if not raw.content.size:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.from_numpy(raw.content).view(dtype).reshape(raw.shape)


def _parameters_of(tensors: dict[str, torch.Tensor], path: Path, sha256: str) -> Parameters:
    tensors = without_parallel(tensors, path)
    taps: tuple[int, ...] = ()
    note = ""
    if relative := family.recognised(tensors, path):
        tensors, taps, note = relative.tensors, relative.taps, relative.note
        logger.info("%s: %s", path, note)
    else:
        if any(f".{name}".endswith("." + huggingface.ANCHOR) for name in tensors):
            tensors = without_prefix(tensors, huggingface.ANCHOR, path)
            tensors = huggingface.to_meta_names(tensors, path)
        tensors = _with_joint_projections(without_prefix(tensors, _ANCHOR, path))
        require_sam(tensors, path)
    arrays = {name: _to_numpy(name, tensor) for name, tensor in tensors.items()}
    return Parameters(check_tensors(arrays, str(path), taps), arrays, sha256, note)


def _with_joint_projections(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``attn.q``, ``attn.k`` and ``attn.v`` of the image encoder (SlimSAM's) as ``attn.qkv``."""
    joint = dict(tensors)
    for name in tensors:
        block, found, kind = name.rpartition(".attn.q.")
        if not found or not block.startswith(ENCODER_PREFIX):
            continue
        names = [f"{block}.attn.{part}.{kind}" for part in "qkv"]
        parts = [tensors[part] for part in names if part in tensors]
        if len(parts) == 3 and len({(part.shape, part.dtype) for part in parts}) == 1:
            joint[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
            for part in names:
                del joint[part]
    return joint


def _check_storage(tensors: Mapping[str, torch.Tensor], size: int, path: Path) -> None:
    """Refuses tensors that would take more memory than the file has bytes.

    Raises:
        CheckpointError: a tensor without values of its own (sparse, on the meta device, quantized,
            repeated by a stride), or all together are larger than the file.
    """
    total = 0
    for name, tensor in tensors.items():
        is_plain = (
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and tensor.nbytes <= tensor.untyped_storage().nbytes()
        )
        if not is_plain:
            raise CheckpointError(
                f"{path}: parameter {shown(name)} is not stored value by value (sparse, "
                "quantized, repeated or empty of values); expected an ordinary tensor"
            )
        total += tensor.nbytes
    if total > size:
        raise damaged(path, f"its tensors claim {total:,} bytes")


def _to_numpy(name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none; float32 holds it exactly
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float16):
        raise CheckpointError(
            f"parameter {shown(name)} has dtype {str(tensor.dtype).removeprefix('torch.')}; "
            "expected float32, float16 or bfloat16"
        )
    return tensor.detach().contiguous().numpy()

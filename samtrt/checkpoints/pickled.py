"""PyTorch's ``.pth`` files that nobody has checked: opened without running code from them."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from samtrt.errors import CheckpointError

DOWNLOAD = (
    "Meta's are listed at https://github.com/facebookresearch/segment-anything#model-checkpoints "
    "(ViT-H: https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth)"
)

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's number before torch 1.6
_PICKLE = b"\x80"
_AGAIN = f"download it again. {DOWNLOAD}"
# What arrives in a checkpoint's place, by its first bytes, and what to do.
_OTHERS = (
    (rb"\s*<", "a web page", _AGAIN),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, and the file itself was not fetched",
        f"run `git lfs pull` in its repository, or {_AGAIN}",
    ),
    (rb"\s*[{\[]", "JSON text", _AGAIN),
    (rb"\xff\xd8\xff|\x89PNG|RIFF.{4}WEBP", "a picture", f"give the model's file. {DOWNLOAD}"),
    (rb"\x1f\x8b", "gzip data", f"unpack it, or {_AGAIN}"),
    (rb"\x89HDF", "an HDF5 file (Keras)", "give PyTorch's or a safetensors file of the model"),
    (rb"GGUF", "a GGUF file", "give PyTorch's or a safetensors file of the model"),
    (
        rb"\x08[\x01-\x20]\x12.(pytorch|samtrt)",
        "an ONNX model",
        "give the checkpoint that it was exported from",
    ),
)
_CHUNK = 1 << 24


def load_pickled(file: BinaryIO, path: Path) -> Any:
    """What ``torch.save`` wrote, tensors on the CPU and in memory of their own.

    A zip file's checksums are compared first, so that no flipped bit gets through; files of torch
    before 1.6 have none.

    Args:
        file: the open file.
        path: its name, for messages.

    Raises:
        CheckpointError: it is no checkpoint, truncated, damaged, or holds what can run code.
    """
    start = file.read(512)
    if start.startswith(_ZIP):
        _check_archive(file, path)
    elif not start.startswith(_PICKLE):
        raise _not_a_checkpoint(path, start)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors ({found[1]}) and was not opened, "
                "because loading them can run code; expected a state_dict of tensors, as Meta "
                "ships it: where you trust the file, save its state_dict alone from the program "
                "that made it"
            ) from error
        if not start.startswith((_ZIP, _LEGACY)):
            raise CheckpointError(
                f"{path} is a pickle that torch.save did not write, and was not opened, because "
                "loading it can run code; expected a state_dict of tensors, as Meta ships it"
            ) from error
        raise damaged(path) from error
    except Exception as error:  # the unpickler fails on damage in many ways
        raise damaged(path) from error


def damaged(path: Path, reason: str = "truncated or damaged") -> CheckpointError:
    """The refusal of a file that was a checkpoint once."""
    return CheckpointError(
        f"{path} is not a whole checkpoint ({path.stat().st_size:,} bytes): {reason}; "
        f"download it again. {DOWNLOAD}"
    )


def _not_a_checkpoint(path: Path, start: bytes) -> CheckpointError:
    if not start:
        return damaged(path, "it is empty, truncated or damaged")
    for pattern, what, advice in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return CheckpointError(f"{path} is {what}, not a checkpoint; {advice}")
    return damaged(path)


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Refuses a zip file that is no checkpoint, or whose content is not what was written."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.split("/")[-1] == "constants.pkl" for name in names):
                raise CheckpointError(
                    f"{path} is a TorchScript program, not a checkpoint; expected a state_dict of "
                    f"tensors. {DOWNLOAD}"
                )
            if sum(name.split("/")[-1] == "data.pkl" for name in names) != 1:
                raise CheckpointError(
                    f"{path} is a zip file without a checkpoint's parts, or with several; unpack "
                    f"it, or download it again. {DOWNLOAD}"
                )
            size = file.seek(0, 2)
            stored = sum(entry.file_size for entry in entries)
            if (
                len(set(names)) < len(names)
                or stored > size
                or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            ):
                raise damaged(path, "its parts are not as torch.save writes them")
            # With torch.serialization.set_crc32_options(False) all are 0.
            if any(entry.CRC for entry in entries):
                for entry in entries:
                    _check_part(archive, entry)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile fails on damage in many ways
        raise damaged(path) from error


def _check_part(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as part:  # compares the checksum at its end
        while part.read(_CHUNK):
            pass

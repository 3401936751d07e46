"""Embedded pictures on disk, so that a picture is encoded once.

A file is bound to the picture it was made from, to the parameters and to the encoder that computed
it; it is refused when one of them differs, because masks from the wrong embedding look plausible
and are wrong.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError
from samtrt.files import replacing
from samtrt.pictures.transforms import ResizeLongestSide, Size
from samtrt.sam import Sam

_FORMAT = "samtrt-embedding-2"


def image_sha256(image: np.ndarray) -> str:
    """The SHA-256 of a picture's content: its shape and its bytes, uint8 [H, W, 3] RGB."""
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def save_embedding(path: str | Path, picture: EmbeddedPicture, image_sha256: str) -> None:
    """Writes an embedded picture as safetensors, whole or not at all.

    Raises:
        SamtrtError: the file cannot be written.
    """
    record = {
        "original_size": picture.original_size,
        "input_size": picture.input_size,
        "img_size": picture.img_size,
        "computed_by": picture.computed_by,
        "parameters_sha256": picture.parameters_sha256,
        "image_sha256": image_sha256,
    }
    tensors = {"features": picture.features.cpu().contiguous()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "embedding": json.dumps(record)})


def load_embedding(
    path: str | Path, image: np.ndarray, sam: Sam, same_encoder: bool = True
) -> EmbeddedPicture:
    """Reads the embedding of that picture for that model, into host memory.

    Args:
        image: [H, W, 3] uint8 RGB.
        same_encoder: see ``SamPredictor.load_embedding``.

    Raises:
        InputError: the file is missing, damaged or not an embedding, or it is stale: of another
            picture, of other parameters or of another encoder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            is_ours = metadata.get("format") == _FORMAT
            record: dict[str, Any] = json.loads(metadata["embedding"]) if is_ours else {}
            features = file.get_tensor("features") if is_ours else None
    except FileNotFoundError:
        raise InputError(
            f"no embedding at {path}; make one with SamPredictor.save_embedding"
        ) from None
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if features is None:
        raise InputError(
            f"{path} is not an embedding of this version; expected {_FORMAT}; "
            "encode the picture again"
        )
    try:
        found = EmbeddedPicture(
            features,
            _size(record["original_size"]),
            _size(record["input_size"]),
            int(record["img_size"]),
            str(record["computed_by"]),
            str(record["parameters_sha256"]),
        )
        sha256 = str(record["image_sha256"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    _check_binding(path, "picture", sha256, image_sha256(image))
    _check_binding(path, "parameter set", found.parameters_sha256, sam.parameters_sha256)
    if same_encoder:
        _check_binding(path, "encoder", found.computed_by, sam.image_encoder.computed_by)
    _check_content(path, found, image, sam)
    return found


def _damaged(path: str | Path, error: Exception) -> InputError:
    return InputError(f"the embedding {path} is damaged ({error}); encode the picture again")


def _check_binding(path: str | Path, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise InputError(
            f"the embedding {path} is stale: it belongs to another {what} ({found[:60]}, expected "
            f"{expected[:60]}); encode the picture again"
        )


def _check_content(path: str | Path, found: EmbeddedPicture, image: np.ndarray, sam: Sam) -> None:
    """Sizes and numbers that the picture and the model cannot have given."""
    height, width = image.shape[:2]
    side = sam.prompt_encoder.image_embedding_size[0]
    expected = {
        "img_size": sam.img_size,
        "original_size": (height, width),
        "input_size": ResizeLongestSide.get_preprocess_shape(height, width, sam.img_size),
        "shape": (1, sam.prompt_encoder.embed_dim, side, side),
    }
    for name, value in expected.items():
        has = tuple(found.features.shape) if name == "shape" else getattr(found, name)
        if has != value:
            raise InputError(
                f"the embedding {path} has {name} {has}, expected {value}; encode the picture again"
            )
    if not bool(torch.isfinite(found.features).all()):
        raise InputError(
            f"the embedding {path} holds numbers that are not finite; encode the picture again"
        )


def _size(value: Any) -> Size:
    height, width = value
    if type(height) is not int or type(width) is not int:
        raise TypeError(f"a size is {value!r}, expected two whole numbers")
    return height, width

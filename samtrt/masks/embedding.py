"""Image embeddings on disk, so that a picture is encoded once.

A file is bound to the picture it was made from and to the engine that made it; it is refused
when either differs, because masks from the wrong embedding look plausible and are wrong.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samtrt.errors import InputError
from samtrt.files import replacing

_FORMAT = "samtrt-embedding-1"


@dataclass(frozen=True)
class Embedding:
    """One picture's embedding and what it is bound to.

    Attributes:
        features: [1, 256, S/16, S/16] float32.
        original_size: (H, W) of the picture, in pixels.
        input_size: (h, w) that it takes up in the model's frame.
        image_sha256: of the picture; see ``image_sha256``.
        engine_sha256: ``Sam.engine_sha256`` of the model that encoded it.
    """

    features: Tensor
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_sha256: str
    engine_sha256: str


def image_sha256(image: np.ndarray) -> str:
    """The SHA-256 of a picture's content: its shape and its bytes, uint8 [H, W, 3] RGB."""
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def save_embedding(path: str | Path, embedding: Embedding) -> None:
    """Writes an embedding as safetensors, whole or not at all.

    Raises:
        SamtrtError: the file cannot be written.
    """
    record = {
        "original_size": embedding.original_size,
        "input_size": embedding.input_size,
        "image_sha256": embedding.image_sha256,
        "engine_sha256": embedding.engine_sha256,
    }
    tensors = {"features": embedding.features.float().cpu().contiguous()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "embedding": json.dumps(record)})


def load_embedding(path: str | Path, image_sha256: str, engine_sha256: str) -> Embedding:
    """Reads an embedding of that picture by that engine.

    Raises:
        InputError: the file is missing, damaged or not an embedding, or it is stale: made from
            another picture or by another engine.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise InputError(
                    f"{path} is not an embedding of this version; expected {_FORMAT}; "
                    "encode the picture again"
                )
            record: dict[str, Any] = json.loads(metadata["embedding"])
            features = file.get_tensor("features")
        embedding = Embedding(
            features,
            _size(record["original_size"]),
            _size(record["input_size"]),
            record["image_sha256"],
            record["engine_sha256"],
        )
    except FileNotFoundError:
        raise InputError(
            f"no embedding at {path}; make one with SamPredictor.save_embedding"
        ) from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the embedding {path} is damaged ({error}); encode the picture again"
        ) from error
    for what, found, expected in (
        ("picture", embedding.image_sha256, image_sha256),
        ("engine", embedding.engine_sha256, engine_sha256),
    ):
        if found != expected:
            raise InputError(
                f"the embedding {path} is stale: it belongs to another {what} "
                f"({found[:12]}…, expected {expected[:12]}…); encode the picture again"
            )
    if features.dtype != torch.float32 or features.dim() != 4 or len(features) != 1:
        raise InputError(
            f"the embedding {path} holds {features.dtype} of shape {tuple(features.shape)}; "
            "expected float32 [1, 256, h, w]; encode the picture again"
        )
    return embedding


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)

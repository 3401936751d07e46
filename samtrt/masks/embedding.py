"""Embedded pictures on disk, so that a picture is encoded once.

A file is bound to the picture it was made from, to the parameters and to the encoder that computed
it; it is refused when one of them differs, because masks from the wrong embedding look plausible
and are wrong.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from samtrt.checkpoints import zarr_file
from samtrt.checkpoints.tensor_file import RawTensor, read_tensors, write_tensors
from samtrt.console import one_line
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError
from samtrt.files import read_whole, write_bytes
from samtrt.pictures.transforms import ResizeLongestSide
from samtrt.records import SHA256, STRICT, parse_record
from samtrt.sam import Sam

_FORMAT = "samtrt-embedding-2"
_FEATURES = "features"
_ATTRIBUTE = "samtrt"  # of a zarr group: what safetensors have as metadata


@dataclass(frozen=True)
class EmbeddingFacts:
    """An embedded picture without its features, for a record to be kept beside them."""

    __pydantic_config__: ClassVar[Any] = STRICT
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    img_size: int
    computed_by: str
    parameters_sha256: str

    @staticmethod
    def of(picture: EmbeddedPicture) -> dict[str, Any]:
        """A picture's, as arguments for a record."""
        return {one.name: getattr(picture, one.name) for one in fields(EmbeddingFacts)}

    def picture(self, features: torch.Tensor) -> EmbeddedPicture:
        """The picture again.

        Raises:
            InputError: as ``EmbeddedPicture``.
        """
        facts = {one.name: getattr(self, one.name) for one in fields(EmbeddingFacts)}
        return EmbeddedPicture(features, **facts)


@dataclass(frozen=True)
class _Record(EmbeddingFacts):
    """What a file says of its features."""

    image_sha256: Annotated[str, SHA256]
    features_sha256: Annotated[str, SHA256]


def image_sha256(image: np.ndarray) -> str:
    """The SHA-256 of a picture's content: its shape and its bytes, uint8 [H, W, 3] RGB."""
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def save_embedding(path: str | Path, picture: EmbeddedPicture, image_sha256: str) -> None:
    """Writes an embedded picture, whole or not at all: as zarr where the name ends in .zarr.zip,
    else as safetensors.

    Raises:
        InputError: it is not known what computed it, or with which parameters.
        SamtrtError: the file cannot be written, or zarr is not installed.
    """
    as_zarr = str(path).endswith(zarr_file.SUFFIX)
    write_bytes(path, embedding_bytes(picture, image_sha256, as_zarr))


def embedding_bytes(picture: EmbeddedPicture, image_sha256: str, as_zarr: bool = False) -> bytes:
    """What ``save_embedding`` writes.

    Raises:
        InputError: it is not known what computed it, or with which parameters.
        SamtrtError: zarr is not installed.
    """
    for name, found in (
        ("encoder", picture.computed_by), ("parameters", picture.parameters_sha256)
    ):  # fmt: skip
        if not found:
            raise InputError(
                f"it is not known which {name} the embedding was computed with, and a file is "
                "bound to that; encode the picture by set_image with the model's own encoder"
            )
    features = RawTensor.of(picture.features.cpu().numpy())
    record = _Record(
        **EmbeddingFacts.of(picture),
        image_sha256=image_sha256,
        features_sha256=hashlib.sha256(features.content.data).hexdigest(),
    )
    metadata = {"format": _FORMAT, "embedding": json.dumps(asdict(record))}
    if as_zarr:
        return zarr_file.zarr_bytes(_FEATURES, features.to_numpy(), {_ATTRIBUTE: metadata})
    file = io.BytesIO()
    write_tensors(file, {_FEATURES: features}, metadata)
    return file.getvalue()


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
        content = read_whole(Path(path))
    except FileNotFoundError:
        raise InputError(
            f"no embedding at {path}; make one with SamPredictor.save_embedding"
        ) from None
    except OSError as error:
        raise _damaged(path, error) from error
    return read_embedding(content, str(path), image, sam, same_encoder)


def read_embedding(
    content: bytes | bytearray, path: str, image: np.ndarray, sam: Sam, same_encoder: bool = True
) -> EmbeddedPicture:
    """``load_embedding`` of a file's content, which errors call ``path``."""
    try:
        array, metadata = _read(content)
        if metadata.get("format") != _FORMAT:
            raise InputError(
                f"{path} is not an embedding of this version; expected {_FORMAT}; "
                "encode the picture again"
            )
        record = parse_record(metadata["embedding"], _Record)
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    features = torch.from_numpy(array)
    if hashlib.sha256(array.data).hexdigest() != record.features_sha256:
        raise _damaged(path, ValueError("its features do not have the recorded hash"))
    try:
        found = record.picture(features)
    except InputError as error:
        raise _damaged(path, error) from error
    _check_binding(path, "picture", record.image_sha256, image_sha256(image))
    _check_binding(path, "parameter set", found.parameters_sha256, sam.parameters_sha256)
    if same_encoder:
        _check_binding(path, "encoder", found.computed_by, sam.encoder.computed_by)
    _check_content(path, found, image, sam)
    return found


def _read(content: bytes | bytearray) -> tuple[npt.NDArray[Any], Mapping[str, Any]]:
    """Features and metadata of either kind of file."""
    if content.startswith(zarr_file.BEGIN):
        array, attributes = zarr_file.read_zarr(content, _FEATURES)
        return array, attributes[_ATTRIBUTE]
    tensors, metadata = read_tensors(bytearray(content) if isinstance(content, bytes) else content)
    return tensors[_FEATURES].to_numpy(), metadata


def _damaged(path: str | Path, error: Exception) -> InputError:
    return InputError(f"the embedding {path} is damaged ({error}); encode the picture again")


def _check_binding(path: str | Path, what: str, found: str, expected: str) -> None:
    if found != expected or not found:
        raise InputError(
            f"the embedding {path} is stale: it belongs to another {what} "
            f"({one_line(found[:60]) or 'unknown'}, expected {expected[:60] or 'unknown'}); encode "
            "the picture again"
        )


def _check_content(path: str | Path, found: EmbeddedPicture, image: np.ndarray, sam: Sam) -> None:
    """Sizes and numbers that the picture and the model cannot have given."""
    height, width = image.shape[:2]
    side = sam.prompt_encoder.image_embedding_size[0]
    expected = {
        "img_size": sam.img_size,
        "original_size": (height, width),
        "input_size": ResizeLongestSide.get_preprocess_shape(height, width, sam.img_size),
        "shape": (1, sam.mask_decoder.embedding_chans, side, side),
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

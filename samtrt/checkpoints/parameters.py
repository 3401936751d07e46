"""The parameters of a SAM as numpy arrays, kept in a parameter folder.

A parameter folder holds ``parameters.safetensors`` (Meta's key names and dtypes) and
``config.json`` (the encoder's sizes, the checkpoint's SHA-256, the parameters' SHA-256).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.shapes import (
    ENCODER_PREFIX,
    check_tensors,
    has_decoder,
    parameter_shapes,
)
from samtrt.checkpoints.tensor_file import RawTensor, read_tensors, write_tensors
from samtrt.errors import CheckpointError, InputError
from samtrt.files import read_sealed, read_whole, sealed_names, sealing, writing
from samtrt.hints import command
from samtrt.records import SHA256, STRICT, parse_record

PARAMETERS_FILE = "parameters.safetensors"
CONFIG_FILE = "config.json"
# Layers whose weights are [input channels, output channels, …].
_TRANSPOSED = tuple(
    f"mask_decoder.{layer}."
    for layer in ("output_upscaling", "compress_vit_feat", "embedding_encoder")
)
# What Hugging Face's folders have beside a config.json of their own.
OTHERS_FILES = (
    "model.safetensors", "pytorch_model.bin",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class Parameters:
    """The parameters of one SAM.

    Attributes:
        encoder_config: sizes of the image encoder, inferred from the tensors.
        tensors: name to array (float32 or float16), with Meta's full key names
            (``image_encoder.…``, ``prompt_encoder.…``, ``mask_decoder.…``).
        source_sha256: SHA-256 of the checkpoint file; empty for generated parameters.
        note: what a user must know of these parameters, such as that they were never trained.
    """

    encoder_config: EncoderConfig
    tensors: dict[str, np.ndarray] = field(repr=False)
    source_sha256: str = ""
    note: str = ""

    def encoder(self) -> dict[str, np.ndarray]:
        """The image encoder's tensors, with ``image_encoder.`` taken off their names."""
        return {
            name.removeprefix(ENCODER_PREFIX): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(ENCODER_PREFIX)
        }

    def decoder(self) -> dict[str, np.ndarray]:
        """The prompt encoder's and the mask decoder's tensors, full names."""
        return {k: v for k, v in self.tensors.items() if not k.startswith(ENCODER_PREFIX)}

    @property
    def has_decoder(self) -> bool:
        """Whether there is a prompt encoder and mask decoder, and not an image encoder alone."""
        return has_decoder(self.tensors)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over names, dtypes, shapes, values and taps: what an engine is bound to."""
        return tensors_digest(self.tensors, self.encoder_config.taps)


def tensors_digest(tensors: Mapping[str, np.ndarray], taps: tuple[int, ...] = ()) -> str:
    """SHA-256 over names, dtypes, shapes, values and taps."""
    digest = hashlib.sha256()
    if taps:  # which no tensor shows
        digest.update(f"taps {taps}\n".encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Record:
    """``config.json``."""

    __pydantic_config__: ClassVar[Any] = STRICT
    encoder: EncoderConfig
    source_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    sha256: Annotated[str, SHA256]
    note: str = ""


def save_parameters(parameters: Parameters, folder: str | Path) -> None:
    """Writes a parameter folder whole, or leaves an earlier one as it was.

    Raises:
        SamtrtError: the folder cannot be written, holds another model, or another process is
            writing it.
    """
    folder = Path(folder)
    if others := [name for name in OTHERS_FILES if (folder / name).exists()]:
        raise CheckpointError(
            f"{folder} holds a Hugging Face model ({others[0]}), whose config.json would be "
            "replaced; give another folder to write to"
        )
    data, record = folder / PARAMETERS_FILE, folder / CONFIG_FILE

    def is_sealed(path: Path) -> bool:
        try:
            _read(folder, path)
        except CheckpointError:
            return False
        return True

    with sealing(data, record, is_sealed) as made:
        raw = {name: RawTensor.of(tensor) for name, tensor in parameters.tensors.items()}
        with writing(data):
            write_tensors(made.path, raw)
        made.record = {
            "encoder": parameters.encoder_config.to_json(),
            "source_sha256": parameters.source_sha256,
            "sha256": parameters.sha256,
            "note": parameters.note,
        }


def is_parameter_folder(path: Path) -> bool:
    """Whether a folder has, or is getting, a parameter folder's files."""
    return any(name.is_file() for name in sealed_names(path / PARAMETERS_FILE))


def load_parameters(folder: str | Path) -> Parameters:
    """Reads a parameter folder back and checks it against the hash it was written with.

    Raises:
        CheckpointError: the folder is missing, incomplete, or was altered.
    """
    folder = Path(folder)
    data, record = folder / PARAMETERS_FILE, folder / CONFIG_FILE
    return read_sealed(data, record, partial(_read, folder))


def _read(folder: Path, data: Path) -> Parameters:
    """The parameters in that file, which must be those of the folder's record."""
    for path in (folder / CONFIG_FILE, data):
        if not path.is_file():
            raise CheckpointError(
                f"no parameter folder at {folder}: {path.name} is missing; make one of a "
                f"checkpoint with `{_convert_command(folder)}`"
            )
    try:
        record = parse_record(bytes(read_whole(folder / CONFIG_FILE)), _Record)
        raw, _ = read_tensors(read_whole(data))
        tensors = {name: tensor.to_numpy() for name, tensor in raw.items()}
    except OSError as error:
        raise CheckpointError(
            f"cannot read the parameter folder {folder}: {error.strerror}; "
            "give one that can be read"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"the parameter folder {folder} is damaged ({error}); make it again with "
            f"`{_convert_command(folder)}`"
        ) from error
    parameters = Parameters(record.encoder, tensors, record.source_sha256, record.note)
    found = check_tensors(tensors, str(folder), record.encoder.taps)
    if parameters.sha256 != record.sha256 or found != record.encoder:
        raise CheckpointError(
            f"the parameter folder {folder} was altered after its conversion: its content does "
            f"not have the recorded hash; make it again with `{_convert_command(folder)}`"
        )
    return parameters


def _convert_command(folder: Path) -> str:
    """What fills a parameter folder, by its name where the checkpoint lies beside it."""
    checkpoint = folder.with_name(f"{folder.name}.pth")
    source = checkpoint if checkpoint.is_file() else "CHECKPOINT.pth"
    return command("convert", "--checkpoint", source, "--output-dir", folder)


def random_parameters(
    config: EncoderConfig, seed: int = 0, hq: bool = False, decoder: bool = True
) -> Parameters:
    """Seeded random float32 parameters of a full SAM, for measuring speed and numerical error.

    Everything is random: Meta initialises relative positions and position embeddings to zero,
    which would hide every mistake made with them. The spread keeps activations of a full-depth
    encoder within float16's range.

    Args:
        hq, decoder: see ``parameter_shapes``.

    Raises:
        InputError: a negative seed.
    """
    if seed < 0:
        raise InputError(f"the seed is {seed}; expected 0 or more")
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parameter_shapes(config, hq, decoder).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("positional_encoding_gaussian_matrix"):
            pass  # unit variance, as in the prompt encoder
        elif len(shape) == 1 and name.endswith("weight"):  # LayerNorm gain
            values = 1 + np.float32(0.1) * values
        elif name.endswith(("bias", "rel_pos_h", "rel_pos_w", "pos_embed")):
            values *= np.float32(0.1)
        elif len(shape) > 1:
            fan_in = int(np.prod(shape[1:])) if not name.startswith(_TRANSPOSED) else shape[0]
            values *= np.float32(fan_in**-0.5)
        tensors[name] = values
    note = f"seeded random weights (seed {seed}), never trained: its masks mean nothing"
    return Parameters(config, tensors, note=note)

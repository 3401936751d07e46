"""The parameters of a SAM as numpy arrays, kept in a parameter folder.

A parameter folder holds ``parameters.safetensors`` (Meta's key names and dtypes) and
``config.json`` (the encoder's sizes, the checkpoint's SHA-256, the parameters' SHA-256).
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.shapes import ENCODER_PREFIX, check_tensors, parameter_shapes
from samtrt.errors import CheckpointError
from samtrt.files import replacing, write_json

PARAMETERS_FILE = "parameters.safetensors"
CONFIG_FILE = "config.json"


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

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over names, dtypes, shapes and values: what an engine is bound to."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = np.ascontiguousarray(self.tensors[name])
            digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
            digest.update(tensor.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def save_parameters(parameters: Parameters, folder: str | Path) -> None:
    """Writes a parameter folder; ``config.json`` comes last, so a folder with it is whole.

    Raises:
        SamtrtError: the folder cannot be written.
    """
    folder = Path(folder)
    if folder.is_dir():
        (folder / CONFIG_FILE).unlink(missing_ok=True)
    with replacing(folder / PARAMETERS_FILE) as temporary:
        try:
            save_file(parameters.tensors, temporary)
        except SafetensorError as error:  # it hides the operating system's error in its text
            raise OSError(str(error)) from error
    write_json(
        folder / CONFIG_FILE,
        {
            "encoder": parameters.encoder_config.to_json(),
            "source_sha256": parameters.source_sha256,
            "sha256": parameters.sha256,
            "note": parameters.note,
        },
    )


def load_parameters(folder: str | Path) -> Parameters:
    """Reads a parameter folder back and checks it against the hash it was written with.

    Raises:
        CheckpointError: the folder is missing, incomplete, or was altered.
    """
    folder = Path(folder)
    try:
        record: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        tensors = load_file(folder / PARAMETERS_FILE)
        config = EncoderConfig.from_json(record["encoder"])
        parameters = Parameters(config, tensors, record["source_sha256"], record.get("note", ""))
        expected = record["sha256"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no parameter folder at {folder}: {Path(error.filename or CONFIG_FILE).name} is "
            "missing; make one with params_convert.py"
        ) from error
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"the parameter folder {folder} is damaged ({error}); run params_convert.py again"
        ) from error
    if parameters.sha256 != expected or check_tensors(tensors, str(folder)) != config:
        raise CheckpointError(
            f"the parameter folder {folder} was altered after its conversion: its content does "
            "not have the recorded hash; run params_convert.py again"
        )
    return parameters


def random_parameters(config: EncoderConfig, seed: int = 0) -> Parameters:
    """Seeded random float32 parameters of a full SAM, for measuring speed and numerical error.

    Everything is random: Meta initialises relative positions and position embeddings to zero,
    which would hide every mistake made with them. The spread keeps activations of a full-depth
    encoder within float16's range.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("positional_encoding_gaussian_matrix"):
            pass  # unit variance, as in the prompt encoder
        elif len(shape) == 1 and name.endswith("weight"):  # LayerNorm gain
            values = 1 + np.float32(0.1) * values
        elif name.endswith(("bias", "rel_pos_h", "rel_pos_w", "pos_embed")):
            values *= np.float32(0.1)
        elif len(shape) > 1:
            fan_in = int(np.prod(shape[1:])) if "output_upscaling" not in name else shape[0]
            values *= np.float32(fan_in**-0.5)
        tensors[name] = values
    note = f"seeded random weights (seed {seed}), never trained: its masks mean nothing"
    return Parameters(config, tensors, note=note)

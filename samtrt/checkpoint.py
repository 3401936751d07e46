"""A SAM checkpoint as numpy arrays: read from Meta's ``.pth``, kept as a parameter folder.

A parameter folder holds ``parameters.safetensors`` (Meta's key names and dtypes) and
``config.json`` (the encoder's sizes, the checkpoint's SHA-256, the parameters' SHA-256).
"""

import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from samtrt import config as sizes
from samtrt.config import EncoderConfig
from samtrt.errors import CheckpointError
from samtrt.files import replacing, sha256_of, write_json

PARAMETERS_FILE = "parameters.safetensors"
CONFIG_FILE = "config.json"
_ENCODER = "image_encoder."
_DOWNLOAD = (
    "Meta's are listed at https://github.com/facebookresearch/segment-anything#model-checkpoints "
    "(ViT-H: https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth)"
)


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
            name.removeprefix(_ENCODER): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(_ENCODER)
        }

    def decoder(self) -> dict[str, np.ndarray]:
        """The prompt encoder's and the mask decoder's tensors, full names."""
        return {k: v for k, v in self.tensors.items() if not k.startswith(_ENCODER)}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over names, dtypes, shapes and values: what an engine is bound to."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = np.ascontiguousarray(self.tensors[name])
            digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
            digest.update(tensor.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def parameter_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every key of a SAM checkpoint with its shape, as Meta's ``Sam.state_dict()`` has them."""
    return {
        **{_ENCODER + name: shape for name, shape in _encoder_shapes(config).items()},
        **_prompt_encoder_shapes(),
        **_mask_decoder_shapes(),
    }


def infer_encoder_config(shapes: dict[str, tuple[int, ...]]) -> EncoderConfig:
    """The encoder's sizes, from the shapes of ``image_encoder.*``.

    A block attends globally when its relative-position table spans the whole token grid
    (2·grid − 1 rows); the other blocks' tables give the window size.

    Raises:
        CheckpointError: the keys that carry the sizes are missing or contradict each other.
    """
    try:
        embed_dim, in_chans, patch_size, _ = shapes[_ENCODER + "patch_embed.proj.weight"]
        _, grid, grid_w, _ = shapes[_ENCODER + "pos_embed"]
        depth = 1 + max(
            int(name.removeprefix(_ENCODER + "blocks.").split(".")[0])
            for name in shapes
            if name.startswith(_ENCODER + "blocks.")
        )
        rel_pos = [shapes[f"{_ENCODER}blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
        mlp_dim = shapes[_ENCODER + "blocks.0.mlp.lin1.weight"][0]
        out_chans = shapes[_ENCODER + "neck.0.weight"][0]
        head_dim = rel_pos[0][1]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            "this is not a SAM checkpoint: the image encoder's sizes cannot be read from its keys "
            f"({error}); expected segment_anything's sam_vit_b, sam_vit_l or sam_vit_h layout"
        ) from None
    if in_chans != 3 or grid != grid_w or head_dim == 0 or embed_dim % head_dim:
        raise CheckpointError(
            f"unusable image encoder: {in_chans} input channels, a {grid}×{grid_w} token grid, "
            f"{embed_dim} channels in heads of {head_dim}; "
            "expected 3 channels, a square grid, and whole heads"
        )
    window_rows = {rows for rows, _ in rel_pos if rows != 2 * grid - 1}
    if len(window_rows) > 1 or any(rows % 2 == 0 for rows in window_rows):
        raise CheckpointError(
            f"unusable image encoder: relative-position tables of {sorted(window_rows)} rows; "
            f"expected 2·{grid} − 1 in global blocks and one odd number in all window blocks"
        )
    return EncoderConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // head_dim,
        global_attn_indexes=tuple(i for i in range(depth) if rel_pos[i][0] == 2 * grid - 1),
        window_size=(window_rows.pop() + 1) // 2 if window_rows else grid,
        img_size=grid * patch_size,
        patch_size=patch_size,
        mlp_dim=mlp_dim,
        out_chans=out_chans,
    )


def read_checkpoint(path: str | Path) -> Parameters:
    """Reads a SAM checkpoint in Meta's layout, of any encoder size.

    The file is memory-mapped and never runs code from it (``weights_only=True``).

    Raises:
        CheckpointError: the file is missing, truncated, holds something else than tensors, or is
            another model's; every missing, unexpected or wrongly shaped key is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; {_DOWNLOAD}")
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _damaged(path) from error
        raise CheckpointError(
            f"{path} holds Python objects beside tensors and was not opened, because loading "
            "them can run code; expected a state_dict of tensors, as Meta ships it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{path} is not a state_dict of tensors; expected segment_anything's layout, "
            'as torch.save(sam.state_dict(), "…") writes it'
        )
    tensors = {name: _to_numpy(name, tensor) for name, tensor in state.items()}
    config = _check(tensors, str(path))
    return Parameters(config, tensors, source_sha256=sha256_of(path))


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
    if parameters.sha256 != expected or _check(tensors, str(folder)) != config:
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


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole PyTorch checkpoint ({path.stat().st_size:,} bytes): truncated or "
        f"damaged; download it again. {_DOWNLOAD}"
    )


def _to_numpy(name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none; float32 holds it exactly
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float16):
        raise CheckpointError(
            f"parameter {name} has dtype {str(tensor.dtype).removeprefix('torch.')}; "
            "expected float32, float16 or bfloat16"
        )
    return tensor.detach().contiguous().numpy()


def _check(tensors: dict[str, np.ndarray], source: str) -> EncoderConfig:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = infer_encoder_config(shapes)
    expected = parameter_shapes(config)
    faults = [f"missing {name}" for name in expected if name not in shapes]
    faults += [f"unexpected {name}" for name in shapes if name not in expected]
    faults += [
        f"{name} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        raise CheckpointError(f"{source} does not fit SAM's layout: {'; '.join(faults)}")
    for name, tensor in tqdm(tensors.items(), "checking", unit="tensor", delay=2, leave=False):
        if not np.isfinite(tensor).all():
            raise CheckpointError(
                f"{source}: parameter {name} holds NaN or inf; expected finite weights, "
                "the training that made them diverged or the file is damaged"
            )
    return config


def _linear(name: str, out_dim: int, in_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _encoder_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    dim, out, patch = config.embed_dim, config.out_chans, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config.grid_size, config.grid_size, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
    }
    for i in range(config.depth):
        block = f"blocks.{i}"
        table = (2 * config.attention_size(i) - 1, config.head_dim)
        shapes |= _norm(f"{block}.norm1", dim)
        shapes |= {f"{block}.attn.rel_pos_h": table, f"{block}.attn.rel_pos_w": table}
        shapes |= _linear(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= _linear(f"{block}.attn.proj", dim, dim)
        shapes |= _norm(f"{block}.norm2", dim)
        shapes |= _linear(f"{block}.mlp.lin1", config.mlp_dim, dim)
        shapes |= _linear(f"{block}.mlp.lin2", dim, config.mlp_dim)
    shapes["neck.0.weight"] = (out, dim, 1, 1)
    shapes |= _norm("neck.1", out)
    shapes["neck.2.weight"] = (out, out, 3, 3)
    shapes |= _norm("neck.3", out)
    return shapes


def _prompt_encoder_shapes() -> dict[str, tuple[int, ...]]:
    dim, channels = sizes.PROMPT_EMBED_DIM, sizes.MASK_IN_CHANS
    downscaling = "prompt_encoder.mask_downscaling"
    return {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, dim // 2),
        # background and foreground point, first and second corner of a box
        **{f"prompt_encoder.point_embeddings.{i}.weight": (1, dim) for i in range(4)},
        "prompt_encoder.not_a_point_embed.weight": (1, dim),
        f"{downscaling}.0.weight": (channels // 4, 1, 2, 2),
        f"{downscaling}.0.bias": (channels // 4,),
        **_norm(f"{downscaling}.1", channels // 4),
        f"{downscaling}.3.weight": (channels, channels // 4, 2, 2),
        f"{downscaling}.3.bias": (channels,),
        **_norm(f"{downscaling}.4", channels),
        f"{downscaling}.6.weight": (dim, channels, 1, 1),
        f"{downscaling}.6.bias": (dim,),
        "prompt_encoder.no_mask_embed.weight": (1, dim),
    }


def _mask_decoder_shapes() -> dict[str, tuple[int, ...]]:
    dim, tokens = sizes.PROMPT_EMBED_DIM, sizes.NUM_MULTIMASK_OUTPUTS + 1
    shapes: dict[str, tuple[int, ...]] = {}

    def attention(name: str, inner: int) -> None:
        for projection in ("q_proj", "k_proj", "v_proj"):
            shapes.update(_linear(f"{name}.{projection}", inner, dim))
        shapes.update(_linear(f"{name}.out_proj", dim, inner))

    def mlp(name: str, out_dim: int) -> None:
        for i, width in enumerate((dim, dim, out_dim)):
            shapes.update(_linear(f"{name}.layers.{i}", width, dim))

    for i in range(sizes.DECODER_DEPTH):
        layer = f"mask_decoder.transformer.layers.{i}"
        attention(f"{layer}.self_attn", dim)
        # Cross attention works at half the width.
        attention(f"{layer}.cross_attn_token_to_image", dim // 2)
        attention(f"{layer}.cross_attn_image_to_token", dim // 2)
        shapes.update(_linear(f"{layer}.mlp.lin1", sizes.DECODER_MLP_DIM, dim))
        shapes.update(_linear(f"{layer}.mlp.lin2", dim, sizes.DECODER_MLP_DIM))
        for norm in ("norm1", "norm2", "norm3", "norm4"):
            shapes.update(_norm(f"{layer}.{norm}", dim))
    attention("mask_decoder.transformer.final_attn_token_to_image", dim // 2)
    shapes.update(_norm("mask_decoder.transformer.norm_final_attn", dim))
    shapes["mask_decoder.iou_token.weight"] = (1, dim)
    shapes["mask_decoder.mask_tokens.weight"] = (tokens, dim)
    upscaling = "mask_decoder.output_upscaling"
    shapes[f"{upscaling}.0.weight"] = (dim, dim // 4, 2, 2)
    shapes[f"{upscaling}.0.bias"] = (dim // 4,)
    shapes.update(_norm(f"{upscaling}.1", dim // 4))
    shapes[f"{upscaling}.3.weight"] = (dim // 4, dim // 8, 2, 2)
    shapes[f"{upscaling}.3.bias"] = (dim // 8,)
    for i in range(tokens):
        mlp(f"mask_decoder.output_hypernetworks_mlps.{i}", dim // 8)
    mlp("mask_decoder.iou_prediction_head", tokens)
    return shapes

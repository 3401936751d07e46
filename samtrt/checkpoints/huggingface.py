"""Hugging Face's files of a SAM: folders with a config, shards, and names of their own."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Len
from pydantic import ConfigDict

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import CONFIG_FILE
from samtrt.checkpoints.parameters import OTHERS_FILES as WEIGHTS_FILES
from samtrt.checkpoints.unwrapping import listed, renamed, shown
from samtrt.errors import CheckpointError
from samtrt.files import read_whole
from samtrt.records import parse_record

_INDEX = ".index.json"

_SAMS = ("", "sam", "sam_hq")
_OTHERS = ("deepseek_vl_v2", "GOT")  # DeepSeek-OCR and GOT-OCR: their image encoder is read

# What the image encoder's position embeddings are called; every SAM of theirs has them once.
ANCHOR = "vision_encoder.pos_embed"

_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_NECK = {"conv1": "0", "layer_norm1": "1", "conv2": "2", "layer_norm2": "3"}
_MASK_EMBED = {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"}
_UPSCALING = {"conv1": "0", "layer_norm": "1", "conv2": "3"}
_HQ = {
    "compress_vit": "compress_vit_feat",
    "encoder": "embedding_encoder",
    "mask": "embedding_maskfeature",
}
_HQ_LAYERS = {"conv1": "0", "norm": "1", "conv2": "3"}
_MLP = {"proj_in": "0", "layers.0": "1", "proj_out": "2"}

# transformers/models/sam/modeling_sam.py → segment_anything/modeling, applied in this order.
_RULES: tuple[tuple[str, Any], ...] = (
    (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
     _POSITIONS),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^(image_encoder\.blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.neck\.(conv1|layer_norm1|conv2|layer_norm2)\.",
     lambda found: f"image_encoder.neck.{_NECK[found[1]]}."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.(conv[123]|layer_norm[12])\.",
     lambda found: f"prompt_encoder.mask_downscaling.{_MASK_EMBED[found[1]]}."),
    (r"^(mask_decoder\.transformer\.(?:layers\.\d+\.)?)layer_norm(\d|_final_attn)\.",
     r"\1norm\2."),
    (r"^mask_decoder\.upscale_(conv1|layer_norm|conv2)\.",
     lambda found: f"mask_decoder.output_upscaling.{_UPSCALING[found[1]]}."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))"
     r"\.(proj_in|layers\.0|proj_out)\.",
     lambda found: f"{found[1]}.layers.{_MLP[found[2]]}."),
    # SAM-HQ's, transformers/models/sam_hq
    (r"^mask_decoder\.hq_token\.", "mask_decoder.hf_token."),
    (r"^mask_decoder\.hq_mask_mlp\.(proj_in|layers\.0|proj_out)\.",
     lambda found: f"mask_decoder.hf_mlp.layers.{_MLP[found[1]]}."),
    (r"^mask_decoder\.(compress_vit|encoder|mask)_(conv1|norm|conv2)\.",
     lambda found: f"mask_decoder.{_HQ[found[1]]}.{_HQ_LAYERS[found[2]]}."),
)  # fmt: skip


def to_meta_names(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of Hugging Face's ``SamModel`` under Meta's names; shapes are the same.

    Raises:
        CheckpointError: two different tensors of one name.
    """
    return renamed(tensors, _meta_name, path)


def _meta_name(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


_LENIENT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True)
class _Vision:
    """``vision_config``: what of it changes the image encoder; None where it does not say."""

    __pydantic_config__: ClassVar[Any] = _LENIENT
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    global_attn_indexes: Annotated[tuple[int, ...], Len(0, 1024)] | None = None
    window_size: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    mlp_dim: int | None = None
    output_channels: int | None = None
    layer_norm_eps: float | None = None
    hidden_act: str | None = None
    num_channels: int | None = None


@dataclass(frozen=True)
class FolderConfig:
    """``config.json`` of a folder."""

    __pydantic_config__: ClassVar[Any] = _LENIENT
    model_type: str = ""
    vision_config: _Vision | None = None


def read_config(folder: Path) -> FolderConfig | None:
    """The folder's config; None where it has none.

    Raises:
        CheckpointError: it is damaged, or says that the model is not a SAM.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = parse_record(bytes(read_whole(path)), FolderConfig)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not the config of a Hugging Face SAM ({error}); download the folder again"
        ) from error
    if config.model_type not in _SAMS + _OTHERS:
        raise CheckpointError(
            f"{folder} is a Hugging Face model of type '{shown(config.model_type)}', and samtrt "
            "reads those of type 'sam' and 'sam_hq'; take facebook/sam-vit-base, -large or -huge, "
            "or a fine-tuned one of them"
        )
    return config


def check_config(config: FolderConfig, found: EncoderConfig, folder: Path) -> None:
    """Holds the config against the sizes that the tensors have.

    Raises:
        CheckpointError: they contradict each other, or it asks for what SAM's encoder has not.
    """
    vision = config.vision_config or _Vision()
    if config.model_type not in _SAMS:
        return
    expected = {
        "hidden_size": found.embed_dim,
        "num_hidden_layers": found.depth,
        "num_attention_heads": found.num_heads,
        "global_attn_indexes": found.global_attn_indexes,
        "window_size": found.window_size,
        "image_size": found.img_size,
        "patch_size": found.patch_size,
        "mlp_dim": found.mlp_dim,
        "output_channels": found.out_chans,
        "layer_norm_eps": found.layer_norm_eps,
        "hidden_act": "gelu",
        "num_channels": 3,
    }
    if len(found.global_attn_indexes) == found.depth:
        del expected["window_size"]  # no block has windows
    faults = [
        f"{name} {shown(getattr(vision, name))} (the tensors have {value})"
        for name, value in expected.items()
        if getattr(vision, name) not in (None, value)
    ]
    if faults:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} does not describe the weights beside it: "
            f"{listed(faults)}; download the folder again"
        )


def weights_files(folder: Path) -> list[Path]:
    """The files of a folder's weights, by the first of ``WEIGHTS_FILES``; empty where it has none.

    Raises:
        CheckpointError: an index that is damaged, or names what is not there.
    """
    for name in WEIGHTS_FILES:
        path = folder / name
        if path.is_file():
            return _shards(path) if name.endswith(_INDEX) else [path]
    return []


def _shards(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(read_whole(index))["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("its weight_map is empty or no object")
        named = set(map(str, weight_map.values()))
        there = {path.name for path in index.parent.iterdir() if path.is_file()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is no index of weights ({shown(error)}); download the folder again"
        ) from error
    if missing := sorted(named - there):
        raise CheckpointError(
            f"{index} names the file '{shown(missing[0])}', which is not in its folder; download "
            "the folder again"
        )
    return [index.parent / name for name in sorted(named)]


def merged(parts: Mapping[Path, dict[str, torch.Tensor]], folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all shards.

    Raises:
        CheckpointError: a name stands in two of them.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path, part in parts.items():
        if twice := part.keys() & tensors.keys():
            raise CheckpointError(
                f"{path} holds {listed(sorted(twice))} once more; download {folder} again"
            )
        tensors |= part
    return tensors


def digest_of(digests: list[str]) -> str:
    """One SHA-256 for a folder's files: of its only file, or of the shards' digests in order."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()

"""Hugging Face's names of a SAM's tensors, written out by hand: the tests' own mapping.

It was checked against transformers 5.24 by ``test_huggingface.test_transformers_agrees``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from samtrt.checkpoints.config import EncoderConfig

SHARED = "shared_image_embedding.positional_embedding"
_ONE_TO_ONE = {
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": SHARED,
    "prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    "mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight": "mask_decoder.mask_tokens.weight",
    "mask_decoder.hf_token.weight": "mask_decoder.hq_token.weight",
}
_LAYERS = {
    "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
    "image_encoder.neck.0": "vision_encoder.neck.conv1",
    "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
    "image_encoder.neck.2": "vision_encoder.neck.conv2",
    "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
    "prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
    "prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
    "prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
    "prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
    "prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
    "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
    "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
    "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
    "mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
}


def _of_mlp(meta: str, theirs: str) -> dict[str, str]:
    return {
        f"{meta}.layers.0": f"{theirs}.proj_in",
        f"{meta}.layers.1": f"{theirs}.layers.0",
        f"{meta}.layers.2": f"{theirs}.proj_out",
    }


def layers_of(depth: int) -> dict[str, str]:
    """Meta's layer → theirs, for an image encoder of so many blocks."""
    layers = dict(_LAYERS)
    for i in range(depth):
        block, theirs = f"image_encoder.blocks.{i}", f"vision_encoder.layers.{i}"
        layers[f"{block}.norm1"] = f"{theirs}.layer_norm1"
        layers[f"{block}.norm2"] = f"{theirs}.layer_norm2"
        for same in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"):
            layers[f"{block}.{same}"] = f"{theirs}.{same}"
    for i in range(4):
        layers[f"prompt_encoder.point_embeddings.{i}"] = f"prompt_encoder.point_embed.{i}"
        mlp = f"mask_decoder.output_hypernetworks_mlps.{i}"
        layers |= _of_mlp(mlp, mlp)
    layers |= _of_mlp("mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head")
    transformer = "mask_decoder.transformer"
    attentions = [f"{transformer}.final_attn_token_to_image"]
    for i in range(2):
        layer = f"{transformer}.layers.{i}"
        for kind in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            attentions.append(f"{layer}.{kind}")
        for norm in range(1, 5):
            layers[f"{layer}.norm{norm}"] = f"{layer}.layer_norm{norm}"
        for linear in ("mlp.lin1", "mlp.lin2"):
            layers[f"{layer}.{linear}"] = f"{layer}.{linear}"
    for attention in attentions:
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layers[f"{attention}.{projection}"] = f"{attention}.{projection}"
    return layers


def _hq_layers() -> dict[str, str]:
    """Of ``SamHQModel``."""
    layers = _of_mlp("mask_decoder.hf_mlp", "mask_decoder.hq_mask_mlp")
    for meta, theirs in (
        ("compress_vit_feat", "compress_vit"),
        ("embedding_encoder", "encoder"),
        ("embedding_maskfeature", "mask"),
    ):
        layers[f"mask_decoder.{meta}.0"] = f"mask_decoder.{theirs}_conv1"
        layers[f"mask_decoder.{meta}.1"] = f"mask_decoder.{theirs}_norm"
        layers[f"mask_decoder.{meta}.3"] = f"mask_decoder.{theirs}_conv2"
    return layers


def to_hugging_face(tensors: dict[str, np.ndarray], depth: int) -> dict[str, torch.Tensor]:
    """A SAM's tensors under Hugging Face's names."""
    names = dict(_ONE_TO_ONE)
    for meta, theirs in (layers_of(depth) | _hq_layers()).items():
        for kind in ("weight", "bias"):
            names[f"{meta}.{kind}"] = f"{theirs}.{kind}"
    for i in range(depth):
        for table in ("rel_pos_h", "rel_pos_w"):
            names[f"image_encoder.blocks.{i}.attn.{table}"] = (
                f"vision_encoder.layers.{i}.attn.{table}"
            )
    return {names[name]: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def vision_config(config: EncoderConfig) -> dict[str, Any]:
    """``vision_config`` of a folder's ``config.json``, as transformers writes it."""
    return {
        "model_type": "sam_vision_model", "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "global_attn_indexes": list(config.global_attn_indexes), "image_size": config.img_size,
        "window_size": config.window_size, "patch_size": config.patch_size,
        "mlp_dim": config.mlp_dim, "mlp_ratio": 4.0, "output_channels": config.out_chans,
        "layer_norm_eps": 1e-06, "hidden_act": "gelu", "num_channels": 3, "qkv_bias": True,
    }  # fmt: skip


def write_folder(
    folder: Path, tensors: dict[str, torch.Tensor], config: EncoderConfig, shards: int = 1
) -> Path:
    """A folder as ``SamModel.save_pretrained`` writes it."""
    folder.mkdir(exist_ok=True)
    record = {"architectures": ["SamModel"], "model_type": "sam",
              "vision_config": vision_config(config)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(record))
    if shards == 1:
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        safetensors.torch.save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder

"""Meta's own modules with seeded random parameters: what every test compares with."""

from typing import Any

import numpy as np
import torch

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import Parameters, random_parameters
from samtrt.reports.peers import meta_image_encoder
from samtrt.reports.peers import meta_sam as _meta_sam


def tiny_config(**changes: Any) -> EncoderConfig:
    """An encoder that shows every case in a moment: 8×8 tokens, windows of 5 that need padding."""
    sizes: dict[str, Any] = {
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "global_attn_indexes": (1,),
        "window_size": 5,
        "img_size": 128,
    }
    return EncoderConfig(**{**sizes, **changes})


def to_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def meta_encoder(config: EncoderConfig, seed: int = 0) -> torch.nn.Module:
    """Meta's ImageEncoderViT with ``random_parameters(config, seed)``."""
    encoder = meta_image_encoder(config)
    encoder.load_state_dict(to_torch(random_parameters(config, seed).encoder()))
    return encoder


def meta_encoder_of(
    config: EncoderConfig, tensors: dict[str, np.ndarray], dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Meta's ImageEncoderViT with parameters of other shapes put into its layers.

    Relative-position tables may have another length than its own, and blocks other sizes.
    """
    encoder = meta_image_encoder(config)
    for key, tensor in to_torch(tensors).items():
        module, _, attribute = key.rpartition(".")
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        setattr(encoder.get_submodule(module), attribute, parameter)
    for index, block in enumerate(encoder.blocks):
        block.attn.scale = config.block_head_dim(index) ** -0.5
    return encoder.to(dtype)


def meta_sam(config: EncoderConfig, seed: int = 0, parameters: Parameters | None = None) -> Any:
    """Meta's Sam with ``random_parameters(config, seed)``, or with the parameters given."""
    sam = _meta_sam(config)
    parameters = parameters or random_parameters(config, seed)
    sam.load_state_dict(to_torch(parameters.tensors))
    return sam


def relative_l2(output: torch.Tensor, reference: torch.Tensor) -> float:
    """‖output − reference‖ / ‖reference‖ in float64."""
    reference = reference.double()
    return ((output.double() - reference).norm() / reference.norm()).item()

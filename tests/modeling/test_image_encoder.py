"""The definition on torch against Meta's ImageEncoderViT."""

import numpy as np
import pytest
import torch
from oracle import meta_encoder, relative_l2, tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import CheckpointError
from samtrt.modeling.bound import bound_encoder
from samtrt.modeling.image_encoder import relative_positions

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {
    "head dim 16, padding": tiny_config(),
    "head dim 80": tiny_config(embed_dim=160, depth=2),
    "head dim 64": tiny_config(embed_dim=128, depth=2),
    "no padding": tiny_config(window_size=4),
    "all global": tiny_config(depth=2, global_attn_indexes=(0, 1)),
    "window as large as the grid": tiny_config(window_size=8),
    "narrow mlp, other patch": tiny_config(mlp_dim=48, patch_size=8, img_size=64, out_chans=24),
}


def image(cfg, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, cfg.img_size, cfg.img_size, generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cfg", CASES.values(), ids=CASES.keys())
def test_equals_meta(cfg, batch, attention):
    x = torch.randn(
        batch, 3, cfg.img_size, cfg.img_size, generator=torch.Generator().manual_seed(1)
    )
    encoder = bound_encoder(cfg, random_parameters(cfg).encoder(), attention=attention)
    output = encoder(x)
    assert output.shape == (batch, cfg.out_chans, cfg.grid_size, cfg.grid_size)
    assert output.dtype == torch.float32
    assert relative_l2(output, meta_encoder(cfg)(x)) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("rows", [7, 31])
def test_relative_position_tables_of_another_length_are_interpolated_as_meta_does(rows):
    cfg = tiny_config()
    parameters = random_parameters(cfg).encoder()
    rng = np.random.default_rng(3)
    meta = meta_encoder(cfg)
    for block, axis in ((0, "h"), (1, "w")):  # a window block and a global one
        name = f"blocks.{block}.attn.rel_pos_{axis}"
        parameters[name] = rng.standard_normal((rows, cfg.head_dim), dtype=np.float32)
        setattr(
            meta.blocks[block].attn,
            f"rel_pos_{axis}",
            torch.nn.Parameter(torch.from_numpy(parameters[name])),
        )
    x = image(cfg)
    assert relative_l2(bound_encoder(cfg, parameters)(x), meta(x)) <= 1e-5


def test_relative_positions_are_those_of_meta():
    from segment_anything.modeling.image_encoder import get_rel_pos

    table = torch.randn(13, 5)
    for size in (4, 7, 9):
        torch.testing.assert_close(relative_positions(size, table), get_rel_pos(size, size, table))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_float32_norms_and_output(dtype):
    cfg = tiny_config()
    tensors = random_parameters(cfg).encoder()
    encoder = bound_encoder(cfg, tensors, dtype)
    for name, parameter in encoder.named_parameters():
        norm = any(part in name for part in ("norm", "neck.1", "neck.3"))
        assert parameter.dtype == (torch.float32 if norm else dtype), name
    x = image(cfg)
    output, reference = encoder(x), meta_encoder(cfg)(x)
    assert output.dtype == torch.float32
    meta_error = relative_l2(meta_encoder(cfg).to(dtype)(x.to(dtype)), reference)
    assert 0 < relative_l2(output, reference) <= 2 * meta_error


def test_load_lists_every_fault_at_once():
    cfg = tiny_config()
    tensors = random_parameters(cfg).encoder()
    del tensors["neck.0.weight"]
    tensors["head.weight"] = np.zeros(3, np.float32)
    tensors["blocks.1.norm1.bias"] = np.zeros(7, np.float32)
    tensors["blocks.0.attn.rel_pos_h"] = np.zeros((9, 5), np.float32)
    with pytest.raises(CheckpointError) as error:
        bound_encoder(cfg, tensors)
    text = str(error.value)
    assert "\n" not in text
    for fault in (
        "missing neck.0.weight",
        "unexpected head.weight",
        "blocks.1.norm1.bias has shape [7], expected [32]",
        "blocks.0.attn.rel_pos_h has shape [9, 5], expected [any, 16]",
    ):
        assert fault in text


def test_float32_parameters_share_the_memory_they_were_loaded_from():
    cfg = tiny_config()
    tensors = random_parameters(cfg).encoder()
    tensors["pos_embed"].flags.writeable = False  # as a memory-mapped file gives it
    encoder = bound_encoder(cfg, tensors)
    for name in ("pos_embed", "blocks.0.attn.qkv.weight"):
        assert (
            encoder.get_parameter(name).data_ptr() == tensors[name].__array_interface__["data"][0]
        )

"""The TensorRT network, read back and evaluated in torch, against Meta's ImageEncoderViT.

No engine runs here. What is compared is the INetworkDefinition that an engine is built from.
"""

from functools import cache

import numpy as np
import pytest
import torch
import trt_reader
from oracle import meta_encoder_of, relative_l2, tiny_config

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.tensorrt.builder import DTYPES, INPUT, OUTPUT, define_network
from samtrt.encoders.tensorrt.library import shared_log
from samtrt.modeling import functional as F
from samtrt.modeling.image_encoder import Attention, Block, relative_positions

pytestmark = pytest.mark.usefixtures("one_thread")

FP32_ERROR = 1e-5

# Block 1 is global, 0 and 2 have windows of 5 or 4 tokens; the grid has 8×8.
CONFIGS = {
    "head dim 64, padding": tiny_config(embed_dim=128),
    "head dim 64, no padding": tiny_config(embed_dim=128, window_size=4),
    "head dim 80, padding": tiny_config(embed_dim=160),
    "head dim 80, no padding": tiny_config(embed_dim=160, window_size=4),
    "all global": tiny_config(depth=2, global_attn_indexes=(0, 1)),
    "all windows": tiny_config(depth=2, global_attn_indexes=()),
    "other patch, mlp and output": tiny_config(patch_size=8, img_size=64, mlp_dim=48, out_chans=24),
    "interpolated rel_pos": tiny_config(),
    "pruned unevenly": tiny_config(head_dims=(9, 16, 5), mlp_dims=(40, 128, 24)),
}
# Rows of the stored tables by block, where they are not 2·size − 1.
INTERPOLATED = {0: 13, 1: 9, 2: 5}


@cache
def parameters(name: str) -> dict[str, np.ndarray]:
    tensors = random_parameters(CONFIGS[name]).encoder()
    if name == "interpolated rel_pos":
        generator = np.random.default_rng(7)
        for block, rows in INTERPOLATED.items():
            for axis in "hw":
                table = generator.standard_normal((rows, CONFIGS[name].head_dim), np.float32)
                tensors[f"blocks.{block}.attn.rel_pos_{axis}"] = table
    return tensors


def define(trt, cfg, tensors, precision, attention):
    log = shared_log(trt)
    log.errors.clear()
    network = define_network(trt, trt.Builder(log), cfg, tensors, precision, attention)
    assert not log.errors
    return network


def pictures(cfg: EncoderConfig, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, cfg.img_size, cfg.img_size, generator=generator)


@cache
def meta_output(name: str, batch: int, precision: str) -> torch.Tensor:
    cfg, dtype = CONFIGS[name], DTYPES[precision]
    return meta_encoder_of(cfg, parameters(name), dtype)(pictures(cfg, batch).to(dtype))


def network_output(trt, name: str, batch: int, precision: str, attention: str) -> torch.Tensor:
    cfg = CONFIGS[name]
    network = define(trt, cfg, parameters(name), precision, attention)
    inputs = {INPUT: pictures(cfg, batch)}
    output = trt_reader.evaluate(trt, network.definition, inputs)[OUTPUT]
    assert output.dtype == torch.float32
    assert output.shape == (batch, cfg.out_chans, cfg.grid_size, cfg.grid_size)
    return output


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_network_equals_meta(trt, name, batch, attention):
    output = network_output(trt, name, batch, "fp32", attention)
    assert relative_l2(output, meta_output(name, batch, "fp32")) <= FP32_ERROR


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_low_precision_network_is_as_near_as_metas_own_model(
    trt, name, batch, attention, precision
):
    reference = meta_output(name, batch, "fp32")
    error = relative_l2(network_output(trt, name, batch, precision, attention), reference)
    meta_error = relative_l2(meta_output(name, batch, precision), reference)
    assert 0 < error <= 2 * meta_error


@torch.inference_mode()
def test_evaluated_in_float64_the_network_is_the_definition(trt):
    """What is left of the difference in low precision is the rounding of the parameters."""
    cfg, tensors = CONFIGS["head dim 64, padding"], parameters("head dim 64, padding")
    network = define(trt, cfg, tensors, "fp16", "fused")
    x = pictures(cfg, 1)
    output = trt_reader.evaluate(trt, network.definition, {INPUT: x}, torch.float64)[OUTPUT]
    rounded = {
        key: tensor
        if any(part in key for part in ("norm", "neck.1", "neck.3"))
        else tensor.astype(np.float16).astype(np.float32)
        for key, tensor in tensors.items()
    }
    assert relative_l2(output, meta_encoder_of(cfg, rounded, torch.float64)(x.double())) <= 1e-7


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_layers_are_named_by_their_module(trt, attention):
    cfg, tensors = CONFIGS["head dim 80, padding"], parameters("head dim 80, padding")
    definition = define(trt, cfg, tensors, "fp16", attention).definition
    names = [definition.get_layer(index).name for index in range(definition.num_layers)]
    assert len(set(names)) == len(names)
    paths = {path for path, _ in meta_encoder_of(cfg, tensors).named_modules()}
    assert {name.rpartition("/")[0] for name in names} <= paths
    for name in (
        "blocks.2.attn.qkv/linear",
        "blocks.2.attn.qkv/linear.weight",
        "blocks.0.mlp.act/gelu",
    ):
        assert name in names
    kinds = {definition.get_layer(index).type for index in range(definition.num_layers)}
    assert (trt.LayerType.ATTENTION_INPUT in kinds) == (attention == "fused")
    assert (trt.LayerType.SOFTMAX in kinds) == (attention == "plain")


# ------------------------------------------------- mistakes that the comparison has to catch


def pad_after_qkv(self, x):
    """Keys and values of padding tokens are zero instead of the bias."""
    if not self.window_size:
        return self.attn(x)
    _, height, width, _ = x.shape
    qkv = F.window_partition(self.attn.qkv(x), self.window_size)
    heads = (self.attn._split_heads(qkv, index) for index in range(3))
    tables = self.attn.rel_pos_h, self.attn.rel_pos_w
    x = F.rel_pos_attention(*heads, *(relative_positions(self.window_size, t) for t in tables))
    shape = (-1, self.window_size, self.window_size, self.attn.num_heads * self.attn.head_dim)
    x = self.attn.proj(F.view(F.permute(x, (0, 2, 1, 3)), shape))
    return F.window_unpartition(x, self.window_size, (height, width))


def pad_before_norm1(self, x):
    """Padding tokens pass norm1, so that they are its bias instead of zero."""
    _, height, width, _ = x.shape
    windows = F.window_partition(x, self.window_size) if self.window_size else x
    y = self.attn(self.norm1(windows))
    if self.window_size:
        y = F.window_unpartition(y, self.window_size, (height, width))
    x = F.add(x, y)
    return F.add(x, self.mlp(self.norm2(x)))


def pad_at_top_left(x, window, right=F.window_partition):
    _, height, width, _ = x.shape
    return right(F.pad(x, (0, -height % window, -width % window, 0), (0, 0, 0, 0)), window)


def rel_pos_of_scaled_q(q, k, v, rel_h, rel_w, fused=True):
    q = F.mul(q, float(q.shape[-1] ** -0.5))
    return F.fused_attention(q, k, v, F.rel_pos_bias(q, rel_h, rel_w))


def rel_pos_swapped(q, rel_h, rel_w, right=F.rel_pos_bias):
    return right(q, rel_w, rel_h)


def one_scale_too_many(q, k, v, bias):
    return F.plain_attention(F.mul(q, float(q.shape[-1] ** -0.5)), k, v, bias)


MISTAKES = {
    "padding after qkv": (Block, "_attend", pad_after_qkv),
    "padding before norm1": (Block, "forward", pad_before_norm1),
    "padding at the top left": (F, "window_partition", pad_at_top_left),
    "rel_pos from scaled q": (F, "rel_pos_attention", rel_pos_of_scaled_q),
    "rel_pos_h and rel_pos_w swapped": (F, "rel_pos_bias", rel_pos_swapped),
    "q scaled twice": (F, "fused_attention", one_scale_too_many),
    "k and v swapped": (
        Attention,
        "_split_heads",
        lambda self, qkv, i, right=Attention._split_heads: right(self, qkv, (0, 2, 1)[i]),
    ),
    "no GELU": (F, "gelu", lambda x: x),
}


@torch.inference_mode()
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_definition_is_caught(trt, monkeypatch, mistake):
    name = "head dim 64, padding"
    monkeypatch.setattr(*MISTAKES[mistake])
    output = network_output(trt, name, 1, "fp32", "fused")
    assert relative_l2(output, meta_output(name, 1, "fp32")) > 100 * FP32_ERROR

"""The CPU runtime against Meta's encoder, and its attention against the definition in fp64."""

import logging
from dataclasses import replace

import pytest
import torch
from oracle import meta_encoder, relative_l2, tiny_config

from samtrt.checkpoints.config import EncoderConfig, vit_b
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders import cpu
from samtrt.encoders.cpu import CpuImageEncoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError
from samtrt.modeling import functional as F
from samtrt.modeling.torch_ops import fused_rel_pos_attention

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {
    "head dim 16, padded windows": tiny_config(),
    "head dim 64": tiny_config(embed_dim=128),
    "head dim 80": tiny_config(embed_dim=160),
    "whole windows": tiny_config(window_size=4),
}


def encoder(config: EncoderConfig, precision: str, max_batch_size: int = 1) -> CpuImageEncoder:
    return CpuImageEncoder(config, random_parameters(config).encoder(), precision, max_batch_size)


def pictures(config: EncoderConfig, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, config.img_size, config.img_size, generator=generator)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_fp32_is_metas(config: EncoderConfig) -> None:
    x = pictures(config)
    with torch.inference_mode():
        expected = meta_encoder(config)(x)
    output = encoder(config, "fp32")(x)
    assert output.dtype == torch.float32
    assert relative_l2(output, expected) < 1e-5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bf16_is_as_near_as_metas_bf16(
    config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_fast_bf16", lambda: True)
    x = pictures(config)
    meta = meta_encoder(config)
    with torch.inference_mode():
        expected = meta(x)
        metas_error = relative_l2(meta.bfloat16()(x.bfloat16()), expected)
    error = relative_l2(encoder(config, "bf16")(x), expected)
    assert 1e-5 < error < 1.5 * metas_error


@pytest.mark.slow
def test_full_size_blocks_are_metas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bf16", lambda: True)
    config = replace(vit_b(), depth=2, global_attn_indexes=(1,))
    x = pictures(config)
    with torch.inference_mode():
        expected = meta_encoder(config)(x)
    assert relative_l2(encoder(config, "fp32")(x), expected) < 1e-5
    assert relative_l2(encoder(config, "bf16")(x), expected) < 0.01


def test_a_batch_is_its_pictures_one_by_one() -> None:
    config = tiny_config()
    model = encoder(config, "fp32", max_batch_size=3)
    x = pictures(config, 3)
    batch = model(x)
    for index in range(3):
        assert torch.equal(batch[index : index + 1], model(x[index : index + 1]))
    assert not torch.equal(batch[0], batch[1])


def test_the_output_can_be_changed_and_differentiated() -> None:
    config = tiny_config()
    output = encoder(config, "fp32")(pictures(config))
    assert not output.is_inference()
    output += 1


def test_it_is_an_image_encoder() -> None:
    model = encoder(tiny_config(), "fp32")
    assert isinstance(model, ImageEncoder)
    assert (model.img_size, model.device) == (128, torch.device("cpu"))
    assert model.computed_by == f"cpu fp32 torch {torch.__version__}"


def test_without_fast_bf16_it_computes_in_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "has_fast_bf16", lambda: False)
    config = tiny_config()
    with caplog.at_level(logging.WARNING):
        model = encoder(config, "bf16")
    assert "no fast bf16" in caplog.text
    assert model.precision == "fp32"
    x = pictures(config)
    assert torch.equal(model(x), encoder(config, "fp32")(x))


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
    ids=str,
)
def test_what_counts_as_fast_bf16(
    capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu.has_fast_bf16() is fast


def test_fp16_is_refused() -> None:
    with pytest.raises(EngineError, match="computes in bf16 or fp32, not in fp16"):
        encoder(tiny_config(), "fp16")


@pytest.mark.parametrize("bias_bytes", [1, 1 << 20], ids=["large", "small"])
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)], ids=["fp32", "bf16"]
)
def test_attention_without_the_bias_matrix(
    dtype: torch.dtype,
    bound: float,
    head_dim: int,
    bias_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("samtrt.modeling.torch_ops._BIAS_BYTES", bias_bytes)
    height, width, heads, batch = 5, 7, 3, 2  # not square: rows and columns cannot be confused
    generator = torch.Generator().manual_seed(head_dim)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    q, k, v = (random(batch, heads, height * width, head_dim) for _ in range(3))
    rel_h, rel_w = 0.3 * random(height, height, head_dim), 0.3 * random(width, width, head_dim)
    output = fused_rel_pos_attention(q, k, v, rel_h, rel_w)
    exact = [x.double() for x in (q, k, v, rel_h, rel_w)]
    expected = F.rel_pos_attention(*exact, fused=False)
    assert relative_l2(output, expected) < bound

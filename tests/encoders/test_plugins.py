"""The network with plugins: what its launches say, evaluated, is Meta's encoder."""

import pytest
import torch
from oracle import meta_encoder, relative_l2
from plugin_replay import evaluate, told_apart

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.tensorrt.builder import INPUT, OUTPUT, record_network
from samtrt.errors import EngineError
from samtrt.kernels.hopper.compiler import Program

pytestmark = pytest.mark.usefixtures("one_thread")

# Windows of 7 on 16 × 16 tokens, which need padding; heads of 64; parts of 128 and 192 channels.
CFG = EncoderConfig(
    embed_dim=384, depth=3, num_heads=6, global_attn_indexes=(1,), window_size=7, img_size=256
)
PARAMETERS = random_parameters(CFG)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "machine_code", told_apart)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("plugins", ["attention", "all"])
@torch.inference_mode()
def test_the_network_is_metas_encoder(plugins: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 3, CFG.img_size, CFG.img_size, generator=generator)
    meta = meta_encoder(CFG)
    reference = meta(x)
    allowed = 1.5 * relative_l2(meta.half()(x.half()), reference)
    recording = record_network(CFG, PARAMETERS.encoder(), "fp16", "plain", plugins, 3)
    kinds = [layer.kind for layer in recording.layers]
    assert kinds.count("plugin") == (CFG.depth if plugins == "attention" else 1 + 5 * CFG.depth)
    assert "softmax" not in kinds and "pad" not in kinds
    for batch in (1, 3):
        output = evaluate(recording, {INPUT: x[:batch]})[OUTPUT]
        assert relative_l2(output, reference[:batch]) <= allowed


def test_what_has_no_plugins_is_refused() -> None:
    def record(precision: str = "fp16", **changes: int) -> None:
        config = EncoderConfig(**{**CFG.to_json(), **changes})
        parameters = random_parameters(config).encoder()
        record_network(config, parameters, precision, "plain", "all")

    with pytest.raises(EngineError, match="the plugins compute in fp16"):
        record("fp32")
    with pytest.raises(EngineError, match="no kernels for the sizes"):
        record(num_heads=12)

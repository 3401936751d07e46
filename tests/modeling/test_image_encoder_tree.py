"""The definition as a tree of torch's layers: trained, traced and taken apart as Meta's is."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from oracle import meta_encoder, relative_l2, tiny_config, to_torch
from torch import Tensor, nn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.modeling.image_encoder import ImageEncoderViT, encoder_arguments
from samtrt.reports.peers import import_segment_anything

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config()


def tree(config: EncoderConfig = CONFIG) -> ImageEncoderViT:
    encoder = ImageEncoderViT(**encoder_arguments(config))
    encoder.load_state_dict(to_torch(random_parameters(config).encoder()))
    return encoder.eval()


def images(batch: int = 2, side: int = CONFIG.img_size) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def metas_class() -> Any:
    import_segment_anything()
    from segment_anything.modeling import ImageEncoderViT as Meta

    return Meta


ARGUMENTS: dict[str, dict[str, Any]] = {
    "SAM's": encoder_arguments(CONFIG),
    "the defaults of a small one": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "other layers": {
        **encoder_arguments(CONFIG),
        "act_layer": nn.ReLU,
        "norm_layer": nn.LayerNorm,
        "qkv_bias": False,
        "use_abs_pos": False,
        "in_chans": 4,
    },
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_metas_arguments_seed_keys_and_values(arguments: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = metas_class()(**arguments)
    torch.manual_seed(3)
    ours = ImageEncoderViT(**arguments)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [type(m).__name__ for m in ours.modules()] == [
        type(m).__name__ for m in theirs.modules()
    ]
    side, channels = arguments["img_size"], arguments.get("in_chans", 3)
    x = torch.randn(2, channels, side, side)
    with torch.no_grad():
        assert relative_l2(ours(x), theirs(x)) <= 1e-5


def test_attributes_that_programs_read() -> None:
    ours, theirs = tree(), meta_encoder(CONFIG)
    assert ours.img_size == theirs.img_size
    assert ours.patch_embed.proj.out_channels == theirs.patch_embed.proj.out_channels
    assert ours.neck[2].out_channels == theirs.neck[2].out_channels
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        assert type(mine.attn.qkv) is nn.Linear
        assert mine.attn.qkv.in_features == other.attn.qkv.in_features
        assert mine.window_size == other.window_size
        assert mine.attn.num_heads == other.attn.num_heads
        assert mine.attn.scale == other.attn.scale


@pytest.mark.parametrize("bias_bytes", [0, 64 << 20], ids=["head by head", "at once"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast bf16"])
def test_gradients_are_metas(
    autocast: bool, bias_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samtrt.modeling.torch_ops._BIAS_BYTES", bias_bytes)
    ours, theirs = tree().train(), meta_encoder(CONFIG).train()
    x, target = images(), torch.randn(2, 256, 8, 8, generator=torch.Generator().manual_seed(2))
    gradients = []
    for encoder in (ours, theirs):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = encoder(given)
        (output * target).sum().backward()
        found = {name: p.grad for name, p in encoder.named_parameters()}
        gradients.append({**found, "x": given.grad})
    assert gradients[0].keys() == gradients[1].keys()
    bound = 0.05 if autocast else 1e-4  # two roundings to bf16 of the same sums
    for name, expected in gradients[1].items():
        found = gradients[0][name]
        assert expected is not None and found is not None and expected.abs().max() > 0, name
        assert relative_l2(found, expected) <= bound, name


def test_half_precision_is_as_near_as_metas() -> None:
    x = images()
    with torch.no_grad():
        reference = meta_encoder(CONFIG)(x)
        theirs = meta_encoder(CONFIG).to(torch.bfloat16)(x.to(torch.bfloat16))
        found = tree().to(torch.bfloat16)(x.to(torch.bfloat16))
    assert found.dtype == theirs.dtype == torch.bfloat16
    assert 0 < relative_l2(found, reference) <= 2 * relative_l2(theirs, reference)


class LowRank(nn.Module):
    """LoRA on qkv as its programs write it: the wrapped layer's output is added to in place."""

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        self.qkv = qkv
        self.dim = qkv.in_features
        self.a = nn.Linear(self.dim, 4, bias=False)
        self.b = nn.Linear(4, self.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv[:, :, :, -self.dim :] += self.b(self.a(x))
        return qkv


def put_low_rank(encoder: Any) -> None:
    for index, block in enumerate(encoder.blocks):
        torch.manual_seed(index)
        block.attn.qkv = LowRank(block.attn.qkv)


def halve_the_picture(encoder: Any) -> None:
    """As fine-tuners do: the position embedding is resized, the tables are interpolated."""
    grid = encoder.pos_embed.permute(0, 3, 1, 2)
    small = nn.functional.interpolate(grid, scale_factor=0.5, mode="bilinear")
    encoder.pos_embed = nn.Parameter(small.permute(0, 2, 3, 1))
    encoder.img_size //= 2


def drop_a_block(encoder: Any) -> None:
    encoder.blocks = encoder.blocks[:2]


SURGERY: dict[str, Callable[[Any], None]] = {
    "LoRA": put_low_rank,
    "half the size": halve_the_picture,
    "fewer blocks": drop_a_block,
}


@pytest.mark.parametrize("operate", SURGERY.values(), ids=SURGERY.keys())
def test_taken_apart_it_computes_as_metas(operate: Callable[[Any], None]) -> None:
    ours, theirs = tree(), meta_encoder(CONFIG)
    for encoder in (ours, theirs):
        operate(encoder)
    x = images(side=ours.img_size)
    with torch.no_grad():
        expected = theirs(x)
        assert relative_l2(ours(x), expected) <= 1e-5
        assert relative_l2(tree()(images()), meta_encoder(CONFIG)(images())) <= 1e-5
    if operate is put_low_rank:
        ours(x).sum().backward()
        assert ours.blocks[0].attn.qkv.a.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore")
def test_traced_it_is_metas() -> None:
    x = images()
    traced = torch.jit.trace(tree(), x)
    with torch.no_grad():
        assert relative_l2(traced(x.flip(0)), meta_encoder(CONFIG)(x.flip(0))) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_exported_it_is_metas(dynamo: bool) -> None:
    x, buffer = images(1), io.BytesIO()
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.onnx.export(
        tree(), (x,), buffer, input_names=["x"], output_names=["y"], opset_version=17, dynamo=dynamo
    )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    (found,) = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = meta_encoder(CONFIG)(x)
    assert isinstance(found, np.ndarray)
    assert relative_l2(torch.from_numpy(found), expected) <= 1e-5


def test_compiled_it_is_metas() -> None:
    x = images()
    exported = torch.export.export(tree(), (x,))
    with torch.no_grad():
        assert relative_l2(exported.module()(x), meta_encoder(CONFIG)(x)) <= 1e-5

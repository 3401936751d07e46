"""``samtrt.accelerate`` on what gives more than SAM's embedding: SAM-HQ's encoder, Cellpose's net.

Both are Meta's layers in another order of calls, which is written out here; the packages themselves
are run by ``make clients``.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import meta_encoder, relative_l2, tiny_config
from torch import Tensor, nn

import samtrt
from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.accelerated import acceleration_of
from samtrt.errors import InputError
from samtrt.reports.peers import import_segment_anything

pytestmark = pytest.mark.usefixtures("one_thread")

HQ = tiny_config(depth=4, global_attn_indexes=(1, 3))
CELLPOSE = tiny_config(patch_size=8, img_size=64, depth=2, global_attn_indexes=(0, 1))


def pictures(config: EncoderConfig, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, config.img_size, config.img_size, generator=generator)


def runtime(module: Any) -> Any:
    found = acceleration_of(module)
    assert found is not None
    return found.runtime_of(module)


def hq_encoder(gives: str = "list", of: int = 4) -> Any:
    """segment_anything_hq's: beside the embedding the output of its global blocks, [B, h, w, C]."""
    import_segment_anything()
    from segment_anything.modeling import ImageEncoderViT

    class Encoder(ImageEncoderViT):
        def forward(self, x: Tensor) -> Any:
            x = self.patch_embed(x) + self.pos_embed
            early = []
            for block in self.blocks[:of]:
                x = block(x)
                if block.window_size == 0:
                    early.append(x)
            x = self.neck(x.permute(0, 3, 1, 2))
            return (x, early) if gives == "list" else (x, tuple(early))

    encoder = meta_encoder(HQ)
    encoder.__class__ = Encoder
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("gives", ["list", "tuple"])
def test_early_features_are_given_as_the_encoder_gives_them(gives: str) -> None:
    encoder, x = hq_encoder(gives), pictures(HQ)
    expected, features = encoder(x)
    samtrt.accelerate(encoder)
    for _ in range(2):
        found, early = encoder(x)
        assert relative_l2(found, expected) < 1e-5
        assert type(early) is type(features) and len(early) == 2
        for mine, theirs in zip(early, features, strict=True):
            assert mine.shape == theirs.shape and mine.is_contiguous()
            assert relative_l2(mine, theirs) < 1e-5
    assert runtime(encoder).computed_by.startswith("cpu fp32")


@torch.no_grad()
def test_early_features_follow_weights_and_layers() -> None:
    encoder, reference, x = samtrt.accelerate(hq_encoder()), hq_encoder(), pictures(HQ)
    encoder(x)
    for model in (encoder, reference):
        model.blocks[1].mlp.lin2.weight.mul_(2)
    assert relative_l2(encoder(x)[1][0], reference(x)[1][0]) < 1e-5
    for model in (encoder, reference):
        model.blocks[0].window_size = 0  # a third global block
    found, expected = encoder(x), reference(x)
    assert len(found[1]) == len(expected[1]) == 3
    assert relative_l2(found[1][2], expected[1][2]) < 1e-5


@torch.no_grad()
def test_other_early_features_than_the_global_blocks_are_refused() -> None:
    encoder = samtrt.accelerate(hq_encoder(of=3))
    with pytest.raises(InputError, match=r"returns 2 values \(Tensor, list\) beside SAM's"):
        encoder(pictures(HQ))


class Keywords(nn.Module):
    """As Hugging Face's encoders are called: with all that was given to the model."""

    config = None

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        self.asked = kwargs
        return super().forward(x) if kwargs.get("return_dict") is not False else "a tuple"


@torch.no_grad()
def test_what_else_is_asked_for_comes_from_the_own_code() -> None:
    from segment_anything.modeling import ImageEncoderViT

    encoder: Any = meta_encoder(HQ)
    encoder.__class__ = type("Encoder", (Keywords, ImageEncoderViT), {})
    samtrt.accelerate(encoder)
    x, expected = pictures(HQ), encoder(pictures(HQ))
    sizes = torch.tensor([[90, 120], [90, 120]])
    for given in (
        {"original_sizes": sizes, "reshaped_input_sizes": sizes},
        {"output_attentions": False, "mask": None, "return_dict": True},
    ):
        encoder.asked = None
        assert relative_l2(encoder(x, **given), expected) < 1e-5
        assert encoder.asked is None  # the runtime's
    assert encoder(x, return_dict=False) == "a tuple"
    for given in ({"mask": sizes}, {"output_attentions": True}):
        encoder(x, **given)
        assert encoder.asked == given


class ByLayers(nn.Module):
    """cellpose/vit.py, ``CPSAM``: calls its encoder's layers itself, and has a readout."""

    def __init__(self, style: str = "zeros") -> None:
        super().__init__()
        self.style, self.ps = style, CELLPOSE.patch_size
        self.encoder = meta_encoder(CELLPOSE)
        for block in self.encoder.blocks:
            # Tables of the SAM that it was made of, longer than needed.
            for name in ("rel_pos_h", "rel_pos_w"):
                setattr(block.attn, name, nn.Parameter(torch.randn(31, CELLPOSE.head_dim)))
        chans = 3 * CELLPOSE.patch_size**2
        self.out = nn.Conv2d(CELLPOSE.out_chans, chans, 1)
        places = torch.eye(chans).reshape(chans, 3, CELLPOSE.patch_size, CELLPOSE.patch_size)
        self.W2 = nn.Parameter(places, requires_grad=False)
        self.diam_mean = nn.Parameter(torch.tensor([30.0]), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        proj = self.encoder.patch_embed.proj
        x = F.conv2d(x, proj.weight.data[:, : x.shape[1]], proj.bias.data, stride=self.ps)
        x = x.permute(0, 2, 3, 1) + self.encoder.pos_embed
        for block in self.encoder.blocks:
            x = block(x)
        x = F.conv_transpose2d(
            self.out(self.encoder.neck(x.permute(0, 3, 1, 2))), self.W2, stride=self.ps
        )
        if self.style == "telling":
            return x, x.mean((2, 3))
        style: Any = torch.zeros if self.style == "zeros" else torch.randn
        return x, style((len(x), 256), device=x.device)


@torch.no_grad()
@pytest.mark.parametrize("style", ["zeros", "randn"])
def test_a_network_of_cellpose_is_computed_as_a_whole(style: str) -> None:
    torch.manual_seed(0)
    model, x = ByLayers(style).eval(), pictures(CELLPOSE)
    expected, _ = model(x)
    assert samtrt.accelerate(model) is model
    for _ in range(2):
        flows, found = model(x)
        assert relative_l2(flows, expected) < 1e-5
        assert found.shape == (2, 256) and bool(found.any()) == (style == "randn")
    assert runtime(model).computed_by.startswith("cpu fp32")
    assert acceleration_of(model.encoder) is None
    two_channels = x[:, :2].contiguous()  # which its own code takes
    assert torch.equal(model(two_channels)[0], ByLayers.forward(model, two_channels)[0])
    model.out.bias.add_(1)
    assert relative_l2(model(x)[0], expected + 1) < 1e-5


@torch.no_grad()
def test_a_network_of_cellpose_in_bf16_is_held_against_bf16() -> None:
    """Its default; 1.2 % from fp32 here, and more with 24 blocks."""
    torch.manual_seed(0)
    model, x = ByLayers().eval().to(torch.bfloat16), pictures(CELLPOSE).to(torch.bfloat16)
    own = model(x)[0]
    flows, _ = samtrt.accelerate(model)(x)
    assert flows.dtype == torch.bfloat16
    precise = samtrt.restore(model).float()(x.float())[0]
    assert relative_l2(flows, precise) < 0.004 < relative_l2(own, precise)


def moved(model: ByLayers) -> None:
    with torch.no_grad():
        model.W2.copy_(model.W2.flip(0))


def with_parameter(model: ByLayers) -> None:
    model.gain = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [(moved, "^W2 does not put each channel at one pixel"), (with_parameter, "^gain is no param")],
)
def test_a_network_of_cellpose_that_was_changed_is_refused(change: Any, message: str) -> None:
    model = ByLayers().eval()
    change(model)
    with pytest.raises(InputError, match=message):
        samtrt.accelerate(model)


@torch.no_grad()
def test_a_style_that_says_something_is_not_left_out() -> None:
    model = samtrt.accelerate(ByLayers("telling").eval())
    with pytest.raises(InputError, match=r"returns 2 values \(Tensor, Tensor\) beside SAM's"):
        model(pictures(CELLPOSE))

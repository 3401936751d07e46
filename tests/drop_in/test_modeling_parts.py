"""The parts of segment_anything.modeling, made with Meta's arguments, against Meta's."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samtrt.reports.peers import import_segment_anything
from samtrt.segment_anything import modeling
from samtrt.segment_anything.modeling import (
    common,
    image_encoder,
    mask_decoder,
    prompt_encoder,
    transformer,
)

import_segment_anything()
from segment_anything import modeling as metas  # noqa: E402
from segment_anything.modeling import common as metas_common  # noqa: E402
from segment_anything.modeling import image_encoder as metas_image_encoder  # noqa: E402
from segment_anything.modeling import mask_decoder as metas_mask_decoder  # noqa: E402
from segment_anything.modeling import prompt_encoder as metas_prompt_encoder  # noqa: E402
from segment_anything.modeling import transformer as metas_transformer  # noqa: E402

CHANNELS = 32


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def pair(ours: type, theirs: type, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Both modules with the same random parameters, whose names and shapes are the same."""
    expected = theirs(*args, **kwargs)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    found = ours(*args, **kwargs)
    found.load_state_dict(expected.state_dict())
    return found, expected


def same(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            same(mine, theirs, tolerance)
        return
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert expected.abs().max() > 1e-3
    scale = expected.abs().max().clamp(min=1)
    assert (found - expected).abs().max() <= tolerance * scale


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (10, 5)])
def test_windows(size: tuple[int, int]) -> None:
    x = random(2, *size, 6)
    windows, padded = image_encoder.window_partition(x, 5)
    expected, expected_size = metas_image_encoder.window_partition(x, 5)
    assert torch.equal(windows, expected) and padded == expected_size
    back = image_encoder.window_unpartition(windows, 5, padded, size)
    assert torch.equal(back, x)
    with pytest.raises(ValueError, match="pad_hw"):
        image_encoder.window_unpartition(windows, 5, (20, 20), size)


@pytest.mark.parametrize(("q", "k", "rows"), [(7, 7, 13), (7, 7, 27), (4, 8, 15), (8, 4, 15)])
def test_relative_positions(q: int, k: int, rows: int) -> None:
    table = random(rows, 6)
    same(image_encoder.get_rel_pos(q, k, table), metas_image_encoder.get_rel_pos(q, k, table))
    attn, queries = random(3, q * q, k * k), random(3, q * q, 6)
    given = (attn, queries, table, random(rows, 6), (q, q), (k, k))
    same(
        image_encoder.add_decomposed_rel_pos(*given),
        metas_image_encoder.add_decomposed_rel_pos(*given),
    )


def test_layers() -> None:
    found, expected = pair(common.LayerNorm2d, metas_common.LayerNorm2d, 6, eps=1e-3)
    x = random(2, 6, 4, 5)
    same(found(x), expected(x))
    for act in ({}, {"act": nn.ReLU}):
        found, expected = pair(
            common.MLPBlock, metas_common.MLPBlock, embedding_dim=6, mlp_dim=9, **act
        )
        x = random(2, 4, 6)
        same(found(x), expected(x))
    for sigmoid in ({}, {"sigmoid_output": True}):
        found, expected = pair(mask_decoder.MLP, metas_mask_decoder.MLP, 6, 9, 3, 4, **sigmoid)
        same(found(x), expected(x))
    found, expected = pair(
        image_encoder.PatchEmbed,
        metas_image_encoder.PatchEmbed,
        kernel_size=(4, 4),
        stride=(4, 4),
        in_chans=3,
        embed_dim=6,
    )
    x = random(2, 3, 8, 12)
    same(found(x), expected(x))


@pytest.mark.parametrize("change", [{}, {"use_abs_pos": False}, {"use_rel_pos": False}])
def test_image_encoder(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": CHANNELS,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 3,
        "out_chans": 12,
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "use_rel_pos": True,
        "window_size": 3,
        "global_attn_indexes": [1],
        **change,
    }
    found, expected = pair(modeling.ImageEncoderViT, metas.ImageEncoderViT, **arguments)
    x = random(2, 3, 64, 64)
    same(found(x), expected(x))


def test_attention_and_blocks() -> None:
    arguments: dict[str, Any] = {"embedding_dim": CHANNELS, "num_heads": 4, "downsample_rate": 2}
    found, expected = pair(transformer.Attention, metas_transformer.Attention, **arguments)
    q, k, v = random(2, 3, CHANNELS), random(2, 7, CHANNELS), random(2, 7, CHANNELS)
    same(found(q=q, k=k, v=v), expected(q=q, k=k, v=v))
    for arguments in ({"mlp_dim": 40}, {"activation": nn.GELU, "skip_first_layer_pe": True}):
        found, expected = pair(
            transformer.TwoWayAttentionBlock,
            metas_transformer.TwoWayAttentionBlock,
            embedding_dim=CHANNELS,
            num_heads=4,
            **arguments,
        )
        given = {"queries": q, "keys": k, "query_pe": random(2, 3, CHANNELS), "key_pe": v}
        same(found(**given), expected(**given))


def test_two_way_transformer() -> None:
    found, expected = pair(
        transformer.TwoWayTransformer,
        metas_transformer.TwoWayTransformer,
        depth=3,
        embedding_dim=CHANNELS,
        num_heads=4,
        mlp_dim=40,
        activation=nn.GELU,
        attention_downsample_rate=4,
    )
    given = random(2, CHANNELS, 3, 5), random(2, CHANNELS, 3, 5), random(2, 6, CHANNELS)
    same(found(*given), expected(*given))


ENCODER = {
    "embed_dim": CHANNELS,
    "image_embedding_size": (3, 5),
    "input_image_size": (48, 80),
    "mask_in_chans": 8,
}
PROMPTS: list[dict[str, Any]] = [
    {"points": True},
    {"points": True, "boxes": True},
    {"boxes": True, "masks": True},
    {"masks": True},
    {},
]


def prompts(points: bool = False, boxes: bool = False, masks: bool = False) -> dict[str, Any]:
    labels = torch.tensor([[1, 0, -1, 2], [0, 1, 3, -1]])
    return {
        "points": (40 * torch.rand(2, 4, 2), labels) if points else None,
        "boxes": 40 * torch.rand(2, 4) if boxes else None,
        "masks": random(2, 1, 12, 20) if masks else None,
    }


@pytest.mark.parametrize("kinds", PROMPTS)
def test_prompt_encoder(kinds: dict[str, bool]) -> None:
    """Also labels that only box corners have, which Meta gives no embedding of a kind."""
    for activation in ({}, {"activation": nn.ReLU}):
        found, expected = pair(
            modeling.PromptEncoder, metas.PromptEncoder, **{**ENCODER, **activation}
        )
        given = prompts(**kinds)
        mine, theirs = (module(**copy.deepcopy(given)) for module in (found, expected))
        assert mine[0].shape == theirs[0].shape
        if theirs[0].numel():
            same(mine[0], theirs[0])
        same(mine[1], theirs[1])
        same(found.get_dense_pe(), expected.get_dense_pe())
        for name in ("embed_dim", "mask_input_size", "num_point_embeddings"):
            assert getattr(found, name) == getattr(expected, name)


def test_positions() -> None:
    for arguments in ({}, {"num_pos_feats": 5, "scale": 2.5}):
        found, expected = pair(
            prompt_encoder.PositionEmbeddingRandom,
            metas_prompt_encoder.PositionEmbeddingRandom,
            **arguments,
        )
        same(found((3, 4)), expected((3, 4)))
        coords = 9 * torch.rand(2, 3, 2)
        for size in ((9, 9), (7, 12)):
            same(
                found.forward_with_coords(coords, size), expected.forward_with_coords(coords, size)
            )
        unit = torch.rand(4, 2)
        same(found._pe_encoding(unit), expected._pe_encoding(unit))


def decoders(**changes: Any) -> tuple[Any, Any]:
    def make(package: Any, outer: Any) -> Any:
        return outer.MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=package.TwoWayTransformer(2, CHANNELS, 4, 40),
            **{"iou_head_hidden_dim": 24, **changes},
        )

    expected = make(metas_transformer, metas)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    found = make(transformer, modeling)
    found.load_state_dict(expected.state_dict())
    return found, expected


def asked(batch: int = 2) -> dict[str, Tensor]:
    return {
        "image_embeddings": random(1, CHANNELS, 3, 5),
        "image_pe": random(1, CHANNELS, 3, 5),
        "sparse_prompt_embeddings": random(batch, 4, CHANNELS),
        "dense_prompt_embeddings": random(batch, CHANNELS, 3, 5),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_multimask_outputs": 5, "iou_head_depth": 2},
        {"activation": nn.ReLU},
        {"activation": nn.Softplus},  # no activation that the fast way knows
    ],
)
def test_mask_decoder(changes: dict[str, Any]) -> None:
    found, expected = decoders(**changes)
    given = asked()
    for multimask in (True, False):
        same(
            found(**given, multimask_output=multimask),
            expected(**given, multimask_output=multimask),
        )
    same(found.predict_masks(**given), expected.predict_masks(**given))


class Lora(nn.Module):
    """What fine-tuners put in the place of a projection."""

    def __init__(self, inner: nn.Linear, factors: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.down, self.up = (nn.Parameter(factor.clone()) for factor in factors)

    @property
    def weight(self) -> Tensor:
        """As peft's layers have one, which is not all that they compute with."""
        return self.inner.weight

    @property
    def bias(self) -> Tensor:
        return self.inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down @ self.up


PROJECTIONS = [
    f"transformer.{attention}.{projection}"
    for attention in (
        "layers.0.self_attn",
        "layers.1.cross_attn_token_to_image",
        "layers.1.cross_attn_image_to_token",
        "final_attn_token_to_image",
    )
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj")
]


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_that_is_replaced_is_what_runs(name: str) -> None:
    found, expected = decoders()
    given = asked()
    before = expected.predict_masks(**given)[0]
    parent, _, child = name.rpartition(".")
    inner = expected.get_submodule(name)
    factors = random(inner.in_features, 2), random(2, inner.out_features)
    for decoder in (found, expected):
        setattr(decoder.get_submodule(parent), child, Lora(decoder.get_submodule(name), factors))
    answer = expected.predict_masks(**given)
    assert (answer[0] - before).abs().max() > 1e-3
    same(found.predict_masks(**given), answer)


class Doubled(nn.Module):
    """Any module in the place of another that is called with the same shapes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.inner(*args, **kwargs)
        if isinstance(answer, tuple):
            return tuple(2 * part for part in answer)
        return 2 * answer


@pytest.mark.parametrize(
    "name",
    [
        "transformer",
        "transformer.layers.1",
        "transformer.layers.0.norm4",
        "transformer.layers.0.cross_attn_image_to_token",
        "transformer.final_attn_token_to_image",
        "output_upscaling",
        "output_upscaling.3",
        "output_upscaling.1",
        "output_upscaling.4",
        "output_hypernetworks_mlps.2",
        "iou_prediction_head",
    ],
)
@pytest.mark.parametrize("by", ["module", "hook"])
def test_a_part_that_is_replaced_is_what_runs(name: str, by: str) -> None:
    found, expected = decoders()
    given = asked()
    before = expected.predict_masks(**given)
    for decoder in (found, expected):
        parent, _, child = name.rpartition(".")
        part = decoder.get_submodule(name)
        if by == "module":
            setattr(decoder.get_submodule(parent), child, Doubled(part))
        else:
            part.register_forward_hook(
                lambda _, __, answer: (
                    tuple(2 * a for a in answer) if isinstance(answer, tuple) else 2 * answer
                )
            )
    answer = expected.predict_masks(**given)
    assert max((a - b).abs().max() for a, b in zip(answer, before, strict=True)) > 1e-3
    same(found.predict_masks(**given), answer)


def test_a_model_is_made_of_parts() -> None:
    """As programs that train one do, with Meta's constructor."""

    def make(package: Any) -> Any:
        return package.Sam(
            image_encoder=package.ImageEncoderViT(
                img_size=64,
                embed_dim=CHANNELS,
                depth=2,
                num_heads=4,
                out_chans=CHANNELS,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=3,
                global_attn_indexes=(1,),
            ),
            prompt_encoder=package.PromptEncoder(CHANNELS, (4, 4), (64, 64), 8),
            mask_decoder=package.MaskDecoder(
                transformer_dim=CHANNELS,
                transformer=package.TwoWayTransformer(2, CHANNELS, 4, 40),
            ),
            pixel_mean=[100.0, 110.0, 120.0],
            pixel_std=[50.0, 55.0, 60.0],
        ).eval()

    expected = make(metas)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    found = make(modeling)
    found.load_state_dict(expected.state_dict())
    batch = [
        {
            "image": 255 * torch.rand(3, 48, 64),
            "original_size": (96, 128),
            "point_coords": 40 * torch.rand(2, 1, 2),
            "point_labels": torch.ones(2, 1),
        },
        {
            "image": 255 * torch.rand(3, 64, 40),
            "original_size": (64, 40),
            "boxes": torch.rand(1, 4),
        },
    ]
    mine, theirs = (sam(copy.deepcopy(batch), multimask_output=True) for sam in (found, expected))
    for ours, answer in zip(mine, theirs, strict=True):
        assert ours.keys() == answer.keys()
        same(ours["low_res_logits"], answer["low_res_logits"], 1e-4)
        same(ours["iou_predictions"], answer["iou_predictions"], 1e-4)
        assert ours["masks"].dtype == torch.bool
        assert (ours["masks"] == answer["masks"]).float().mean() > 0.999


def test_gradients() -> None:
    found, expected = decoders()
    given = asked()
    for decoder in (found, expected):
        masks, scores = decoder.predict_masks(**given)
        (masks.square().mean() + scores.sum()).backward()
    mine, theirs = dict(found.named_parameters()), dict(expected.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in theirs.items():
        if ".k_proj.bias" in name:  # drops out of the softmax: zero, but for rounding
            assert parameter.grad.abs().max() < 1e-4
            continue
        assert parameter.grad.abs().max() > 0, name
        same(
            mine[name].grad / parameter.grad.abs().max(),
            parameter.grad / parameter.grad.abs().max(),
            1e-4,
        )

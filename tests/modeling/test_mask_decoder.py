"""Prompt encoder and mask decoder against Meta's modules on the same parameters."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, relative_l2, tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import CheckpointError
from samtrt.modeling.prompt_encoder import prompt_points
from samtrt.modeling.prompted_decoder import (
    PromptedMaskDecoder,
    build_mask_decoder,
    new_mask_decoder,
)

CONFIG = tiny_config(img_size=128)
TOLERANCE = 1e-5  # relative L2: what fp32 rounding leaves after some twenty layers


@pytest.fixture(scope="module")
def meta() -> Any:
    return meta_sam(CONFIG, seed=3).eval()


@pytest.fixture(scope="module")
def decoder() -> PromptedMaskDecoder:
    return build_mask_decoder(random_parameters(CONFIG, 3).decoder(), CONFIG)


@pytest.fixture(params=[512, 24], ids=["in one piece", "in rows"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 64 image tokens at once, and a few at a time, the last of them fewer."""
    monkeypatch.setattr("samtrt.modeling.layers._ROWS", request.param)


def prompts(
    batch: int, points: int, box: bool, mask: bool
) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(batch * 100 + points * 10 + box)
    coords = torch.rand(batch, points, 2, generator=generator) * CONFIG.img_size
    labels = torch.randint(0, 2, (batch, points), generator=generator)
    low = torch.rand(batch, 2, generator=generator) * 60
    boxes = torch.cat((low, low + 50), dim=1) if box else None
    side = 4 * CONFIG.grid_size
    masks = torch.randn(batch, 1, side, side, generator=generator) if mask else None
    return ((coords, labels) if points else None), boxes, masks


def embedding(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 256, CONFIG.grid_size, CONFIG.grid_size, generator=generator)


def test_state_dict_has_the_keys_of_metas_checkpoint(
    meta: Any, decoder: PromptedMaskDecoder
) -> None:
    expected = {k: v.shape for k, v in meta.state_dict().items() if "image_encoder" not in k}
    assert {k: v.shape for k, v in decoder.state_dict().items()} == expected


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    ("batch", "points", "box", "mask"),
    [
        (1, 1, False, False),
        (1, 3, False, True),
        (1, 0, True, False),
        (3, 0, True, True),
        (2, 2, True, False),
        (4, 1, False, False),
        (1, 0, False, True),
        (1, 0, False, False),
    ],
)
@pytest.mark.usefixtures("rows")
@torch.inference_mode()
def test_equals_meta(
    meta: Any,
    decoder: PromptedMaskDecoder,
    batch: int,
    points: int,
    box: bool,
    mask: bool,
    multimask: bool,
) -> None:
    given = prompts(batch, points, box, mask)
    sparse, dense = decoder.prompt_encoder(*given)
    expected_sparse, expected_dense = meta.prompt_encoder(*given)
    assert sparse.shape == expected_sparse.shape
    torch.testing.assert_close(sparse, expected_sparse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense, expected_dense, rtol=1e-5, atol=1e-5)

    masks, ious = decoder.mask_decoder(
        embedding(), decoder.prompt_encoder.get_dense_pe(), sparse, dense, multimask
    )
    expected_masks, expected_ious = meta.mask_decoder(
        image_embeddings=embedding(),
        image_pe=meta.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=expected_sparse,
        dense_prompt_embeddings=expected_dense,
        multimask_output=multimask,
    )
    assert masks.shape == expected_masks.shape
    assert relative_l2(masks, expected_masks) < TOLERANCE
    torch.testing.assert_close(ious, expected_ious, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_labelled_points_equal_metas_prompts(meta: Any, decoder: PromptedMaskDecoder) -> None:
    """The call with one list of labelled points gives what Meta's two modules give."""
    points, boxes, masks = prompts(2, 2, True, True)
    coords, labels = prompt_points(points, boxes)
    logits, ious = decoder(embedding(), coords, labels, masks, torch.ones(1))
    sparse, dense = meta.prompt_encoder(points, boxes, masks)
    expected = meta.mask_decoder.predict_masks(
        embedding(), meta.prompt_encoder.get_dense_pe(), sparse, dense
    )
    assert relative_l2(logits, expected[0]) < TOLERANCE
    assert relative_l2(ious, expected[1]) < TOLERANCE


@torch.inference_mode()
def test_mask_input_counts_only_when_it_is_said_to(decoder: PromptedMaskDecoder) -> None:
    points, _, mask = prompts(1, 1, False, True)
    coords, labels = prompt_points(points, None)
    without = decoder(embedding(), coords, labels)[0]
    ignored = decoder(embedding(), coords, labels, mask, torch.zeros(1))[0]
    counted = decoder(embedding(), coords, labels, mask)[0]
    torch.testing.assert_close(ignored, without)
    assert relative_l2(counted, without) > 0.01


@pytest.mark.parametrize("mask", [False, True])
@torch.inference_mode()
def test_each_prompt_of_a_batch_is_its_own(decoder: PromptedMaskDecoder, mask: bool) -> None:
    """More prompts than are decoded at once on the CPU."""
    points, _, masks = prompts(19, 2, False, mask)
    coords, labels = prompt_points(points, None)
    together = decoder(embedding(), coords, labels, masks)
    assert together[0].shape[:2] == (19, 4) and together[1].shape == (19, 4)
    for i in range(19):
        one = slice(i, i + 1)
        alone = decoder(embedding(), coords[one], labels[one], masks[one] if mask else None)
        assert relative_l2(together[0][one], alone[0]) < TOLERANCE
        torch.testing.assert_close(together[1][one], alone[1], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_one_image_a_prompt(decoder: PromptedMaskDecoder) -> None:
    images = torch.cat((embedding(1), embedding(2)))
    coords, labels = prompt_points(prompts(2, 1, False, False)[0], None)
    together = decoder(images, coords, labels)[0]
    for i in range(2):
        alone = decoder(images[i : i + 1], coords[i : i + 1], labels[i : i + 1])[0]
        assert relative_l2(together[i : i + 1], alone) < TOLERANCE


def test_padding_point_is_added_only_without_a_box() -> None:
    points, boxes, _ = prompts(2, 1, True, False)
    coords, labels = prompt_points(points, None)
    assert labels[:, -1].tolist() == [-1, -1] and coords[:, -1].abs().sum() == 0
    coords, labels = prompt_points(points, boxes)
    assert labels[:, 1:].tolist() == [[2, 3], [2, 3]]
    assert torch.equal(coords[:, 1:].reshape(2, 4), boxes)
    assert prompt_points(None, None) == (None, None)


def test_wrong_parameters_are_one_clear_error() -> None:
    tensors = random_parameters(CONFIG, 0).decoder()
    name, array = next(iter(tensors.items()))
    with pytest.raises(CheckpointError, match="size mismatch"):
        build_mask_decoder({**tensors, name: np.zeros((3, *array.shape), np.float32)}, CONFIG)
    del tensors["mask_decoder.iou_token.weight"]
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight") as caught:
        build_mask_decoder(tensors, CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.inference_mode()
def test_on_the_gpu_as_on_the_cpu(decoder: PromptedMaskDecoder) -> None:
    points, boxes, masks = prompts(19, 2, True, True)
    coords, labels = prompt_points(points, boxes)
    expected = decoder(embedding(), coords, labels, masks)
    given = [tensor.cuda() for tensor in (embedding(), coords, labels, masks)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 is the default
        ours = copy.deepcopy(decoder).cuda()(*given)
    assert relative_l2(ours[0].cpu(), expected[0]) < 1e-4
    torch.testing.assert_close(ours[1].cpu(), expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("hq", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("drawn", ["none", "some", "all"])
@torch.inference_mode()
def test_only_masks_above_are_drawn(
    hq: bool, with_mask: bool, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of ``forward``, whose prompts are more than are decoded at once."""
    torch.manual_seed(5)
    decoder = new_mask_decoder(CONFIG, hq=hq).eval()
    features = torch.randn(1, decoder.mask_decoder.embedding_chans, *[CONFIG.grid_size] * 2)
    points, boxes, mask = prompts(9, 1, False, with_mask)
    coords, labels = prompt_points(points, boxes)
    logits, ious = decoder.mask_decoder.select(*decoder(features, coords, labels, mask), True)
    middle = float(ious.median())
    least = {"none": float(ious.max()), "some": middle, "all": -10.0}[drawn]
    asked = []
    draw = decoder.mask_decoder.draw

    def counting(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append(len(tokens))
        return draw(tokens, *rest)

    monkeypatch.setattr(decoder.mask_decoder, "draw", counting)

    masks, indices, scores = decoder.masks_above(least, features, coords, labels, mask)

    torch.testing.assert_close(scores, ious)
    above = ious > least
    assert indices.tolist() == above.flatten().nonzero()[:, 0].tolist()
    assert sum(asked) == above.any(dim=1).sum()  # no prompt's in vain
    assert masks.shape == (above.sum(), *logits.shape[2:])
    if len(masks):
        assert relative_l2(masks, logits.flatten(0, 1)[indices]) < TOLERANCE

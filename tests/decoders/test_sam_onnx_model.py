"""Decoder files in Meta's contract and in CVAT's, in ONNX Runtime, against Meta's SamOnnxModel."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from oracle import meta_sam, tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.decoders.export import DecoderExport, export_decoder
from samtrt.decoders.onnx import OnnxDecoder
from samtrt.errors import InputError
from samtrt.segment_anything.utils.onnx import SamOnnxModel

CONFIG = tiny_config(img_size=256)
GRID, SIDE = CONFIG.grid_size, 4 * CONFIG.grid_size
PARAMETERS = random_parameters(CONFIG, 7)
SIZES = [(150, 225), (333, 200), (256, 256), (1080, 1920), (40, 30)]
Feed = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def meta() -> Any:
    return meta_sam(CONFIG, parameters=PARAMETERS)


def metas_model(meta: Any, **options: Any) -> Any:
    from segment_anything.utils.onnx import SamOnnxModel as Metas

    return Metas(meta, **{"return_single_mask": False, **options})


def asked(size: tuple[int, int], points: int, mask: bool, seed: int = 0) -> Feed:
    """One prompt with points of every kind, as the file takes it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image_embeddings": 0.5 * torch.randn(1, 256, GRID, GRID, generator=generator),
        "point_coords": torch.rand(1, points, 2, generator=generator) * CONFIG.img_size,
        "point_labels": torch.randint(-1, 4, (1, points), generator=generator).float(),
        "mask_input": 3 * torch.randn(1, 1, SIDE, SIDE, generator=generator),
        "has_mask_input": torch.tensor([float(mask)]),
        "orig_im_size": torch.tensor(size).float(),
    }


class File:
    """An exported file in ONNX Runtime as it comes."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        export_decoder(PARAMETERS, path, options=DecoderExport(**options))
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, feed: Feed) -> list[np.ndarray]:
        return self.session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(tmp_path_factory.mktemp("meta") / "decoder.onnx", contract="meta")


def test_files_are_read_by_runtimes_of_their_opset(plain: File) -> None:
    """Opset 18 came with version 8 of the format; ONNX Runtime 1.16, which X-AnyLabeling pins,
    refuses more than 9."""
    model = onnx.load(plain.path, load_external_data=False)
    assert model.ir_version == 8 and [entry.version for entry in model.opset_import] == [18]


def agree(found: list[np.ndarray], expected: tuple[torch.Tensor, ...]) -> None:
    """In shapes, dtypes and values."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.numpy().dtype
        assert np.abs(mine - theirs.numpy()).max() <= 1e-4


@pytest.mark.parametrize(("points", "mask"), [(1, False), (2, True), (7, True)])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_metas(
    plain: File, meta: Any, size: tuple[int, int], points: int, mask: bool
) -> None:
    assert [value.name for value in plain.session.get_inputs()] == list(asked((1, 1), 1, False))
    assert plain.outputs == ["masks", "iou_predictions", "low_res_masks"]
    feed = asked(size, points, mask, seed=points)
    expected = metas_model(meta)(**feed)
    assert expected[0].shape == (1, 4, *size) and expected[0].abs().max() > 0.5
    agree(plain(feed), expected)


def test_the_module_is_metas_too(meta: Any) -> None:
    """In torch, around a model of the same parameters, every option of the constructor."""
    feed = asked((150, 225), 3, True)
    for options in (
        {"return_single_mask": True},
        {"return_single_mask": False, "use_stability_score": True},
        {"return_single_mask": True, "use_stability_score": True, "return_extra_metrics": True},
    ):
        expected = metas_model(meta, **options)(**feed)
        agree([t.numpy() for t in SamOnnxModel(meta_like(), **options)(**feed)], expected)
    for size in SIZES:
        given = torch.tensor(size).float()
        expected = metas_model(meta).resize_longest_image_size(given, 256)
        assert torch.equal(SamOnnxModel.resize_longest_image_size(given, 256), expected)


def meta_like() -> Any:
    """A model of ours."""
    from samtrt.sam import sam_from_parameters

    return sam_from_parameters(PARAMETERS, "cpu", "cpu", "fp32")


def test_programs_may_export_it_by_torchs_older_exporter(tmp_path: Path) -> None:
    """As Meta's script did; sizes stay dynamic."""
    model = SamOnnxModel(meta_like(), return_single_mask=True)
    path = tmp_path / "traced.onnx"
    example = asked((150, 225), 5, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(example.values()),
            path,
            dynamo=False,
            opset_version=17,
            input_names=list(example),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size, points in (((90, 200), 2), ((300, 100), 3)):
        feed = asked(size, points, True)
        answer = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        agree(answer, model(**feed))


def test_several_prompts_with_one_mask_or_one_each(plain: File, meta: Any) -> None:
    """Meta's file takes one at a time; this one answers each as Meta's does."""
    each = [asked((99, 140), 4, True, seed) for seed in (1, 2, 3)]
    for masks in (1, 3):
        feed = dict(each[0])
        for name in ("point_coords", "point_labels"):
            feed[name] = torch.cat([one[name] for one in each])
        feed["mask_input"] = torch.cat([one["mask_input"] for one in each[:masks]])
        answers = []
        for index, one in enumerate(each):
            mask = feed["mask_input"][min(index, masks - 1)][None]
            shared = {"image_embeddings": feed["image_embeddings"], "mask_input": mask}
            answers.append(metas_model(meta)(**{**one, **shared}))
        agree(plain(feed), tuple(torch.cat(parts) for parts in zip(*answers, strict=True)))


@pytest.mark.slow
def test_every_option(meta: Any, tmp_path: Path) -> None:
    options = {
        "return_single_mask": True,
        "use_stability_score": True,
        "return_extra_metrics": True,
    }
    file = File(tmp_path / "all.onnx", contract="meta", gelu_approximate=True, **options)
    names = ["masks", "iou_predictions", "stability_scores", "areas", "low_res_masks"]
    assert file.outputs == names
    theirs = metas_model(meta, **options)
    exact = theirs(**asked((333, 200), 2, True))
    changed = [m for m in theirs.modules() if isinstance(m, torch.nn.GELU)]
    for module in changed:
        module.approximate = "tanh"
    try:
        for points in (2, 3):  # one of masks 1…3, and mask 0
            feed = asked((333, 200), points, True)
            expected = theirs(**feed)
            found = file(feed)
            area = found.pop(3)
            assert area.dtype == np.int64 and area.shape == (1, 1)
            # A logit may lie as near to the threshold as fp32 rounds.
            assert abs(area - expected[3].numpy()).max() <= 3 and area.min() > 100
            expected = (*expected[:3], expected[4])
            agree([found[0], found[3]], (expected[0], expected[3]))
            for mine, stability in zip(found[1:3], expected[1:3], strict=True):
                assert mine.shape == stability.shape
                assert np.abs(mine - stability.numpy()).max() <= 1e-3
        assert (exact[0] - theirs(**asked((333, 200), 2, True))[0]).abs().max() > 1e-4
    finally:
        for module in changed:
            module.approximate = "none"


def test_stability_of_an_empty_mask_is_no_nan(plain: File) -> None:
    model = SamOnnxModel(meta_like(), return_single_mask=False, use_stability_score=True)
    assert model._stability(torch.full((1, 4, 8, 8), -9.0)).tolist() == [[0.0] * 4]


def test_a_side_never_vanishes(plain: File) -> None:
    """Meta's crop of a 1 × 900 picture has no row, and its upscaling fails."""
    masks, _, low_res = plain(asked((1, 900), 2, False))
    assert masks.shape == (1, 4, 1, 900) and np.isfinite(masks).all() and low_res.any()


@pytest.mark.slow
def test_what_cvats_page_loads(meta: Any, tmp_path: Path) -> None:
    file = File(tmp_path / "cvat.onnx", contract="cvat")
    assert file.outputs == [
        *("masks", "iou_predictions", "low_res_masks"),
        *("xtl", "ytl", "xbr", "ybr"),
    ]
    theirs = metas_model(meta, return_single_mask=True)
    sizes = set()
    for seed in range(4):
        feed = asked((150, 225), 1 + seed, True, seed)
        # Marks a corner, so that the mask does not fill the picture.
        feed["mask_input"][:] = -20
        feed["mask_input"][..., 5 * seed : 20, 10:30] = 20
        masks, scores, low_res = theirs(**feed)
        mask = (masks[0, 0] > 0).numpy()
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = [0, 0, 0, 0]
        if mask.any():
            box = [columns[0], rows[0], columns[-1], rows[-1]]
        pixels, *others = file(feed)
        agree(others[:2], (scores, low_res))
        assert [edge.tolist() for edge in others[2:]] == [[edge] for edge in box]
        left, top, right, bottom = box
        cropped = 255 * mask[top : bottom + 1, left : right + 1].astype(np.uint8)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels[0, 0], cropped)
        sizes.add(pixels.shape)
    assert len(sizes) > 1, "the boxes show nothing"


def test_an_empty_masks_box_is_a_pixel() -> None:
    from samtrt.decoders.sam_onnx_model import CvatOnnxModel

    model = CvatOnnxModel(meta_like())
    model.mask_threshold = 1e9
    pixels, _, _, *box = model(**asked((30, 40), 2, False))
    assert pixels.tolist() == [[[[0]]]] and [edge.tolist() for edge in box] == [[0]] * 4


def test_our_decoder_reads_them(plain: File) -> None:
    decoder = OnnxDecoder(plain.path)
    assert (decoder.img_size, decoder.num_masks) == (CONFIG.img_size, 4)
    assert decoder.parameters_sha256 == PARAMETERS.sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contract": "onnx"}, "contract is 'onnx', expected one of samtrt, meta, cvat"),
        ({"use_stability_score": True}, "belong to the contract 'meta'"),
        ({"return_extra_metrics": True}, "belong to the contract 'meta'"),
        ({"contract": "cvat", "return_extra_metrics": True}, "'cvat' has no extra metrics"),
    ],
)
def test_options_that_a_contract_does_not_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecoderExport(**options)

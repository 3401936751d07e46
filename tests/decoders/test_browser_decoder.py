"""The page's two graphs against Meta's decoder: the same algebra, and what fp16 weights change."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from oracle import meta_sam, tiny_config
from PIL import Image

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import Parameters, random_parameters
from samtrt.decoders.browser.contract import FILES
from samtrt.decoders.browser.export import export_browser_decoder
from samtrt.decoders.browser.runtime import BrowserDecoder
from samtrt.decoders.contract import METADATA_PARAMETERS
from samtrt.decoders.sealed import sealed
from samtrt.errors import EngineError
from samtrt.reports.peers import import_segment_anything

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/sam"
CONFIG = tiny_config(img_size=256)
GRID = CONFIG.grid_size
MOST_BYTES = 9_000_000  # of both graphs, as they are sent


def moved(parameters: Parameters, seed: int) -> Parameters:
    """The parameters with fp32 digits that fp16 has not: each moved by up to half a unit of its."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (tensor * (1 + rng.uniform(-1, 1, tensor.shape) * 2.0**-11)).astype(np.float32)
        for name, tensor in parameters.tensors.items()
    }
    return replace(parameters, tensors=tensors)


def rounded(parameters: Parameters) -> Parameters:
    """The parameters that fp16 has."""
    tensors = {
        name: tensor.astype(np.float16).astype(np.float32)
        for name, tensor in parameters.tensors.items()
    }
    return replace(parameters, tensors=tensors)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return rounded(random_parameters(CONFIG, 7))


@pytest.fixture(scope="module")
def folder(parameters: Parameters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    export_browser_decoder(parameters, folder)
    return folder


@torch.inference_mode()
def metas_answer(
    meta: Any, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Meta's SamOnnxModel in torch: logits [1, 4, 4h, 4w] and predicted IoUs [1, 4]."""
    from segment_anything.utils.onnx import SamOnnxModel

    model = SamOnnxModel(meta, return_single_mask=False)
    side = 4 * embedding.shape[-1]
    given = np.zeros((1, 1, side, side), np.float32) if mask is None else mask
    size = torch.tensor([model.img_size, model.img_size])
    has_mask = torch.tensor([float(mask is not None)])
    arrays = (torch.from_numpy(array) for array in (embedding, coords, labels, given))
    _, scores, logits = model(*arrays, has_mask, size)
    return logits.numpy(), scores.numpy()


@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "a mask"])
@pytest.mark.parametrize("points", [1, 2, 7])
def test_graphs_equal_meta(folder: Path, parameters: Parameters, points: int, mask: bool) -> None:
    """With weights that fp16 has only GELU's form is left: 5e-4 at most where it is taken."""
    rng = np.random.default_rng(points)
    embedding = rng.standard_normal((1, 256, GRID, GRID)).astype(np.float16).astype(np.float32)
    coords = rng.uniform(0, CONFIG.img_size, (1, points, 2)).astype(np.float32)
    labels = rng.integers(-1, 4, (1, points)).astype(np.float32)
    side = 4 * GRID
    given = rng.standard_normal((1, 1, side, side)).astype(np.float32) * 5 if mask else None
    meta = meta_sam(CONFIG, parameters=parameters)
    expected, scores = metas_answer(meta, embedding, coords, labels, given)
    decoder = BrowserDecoder(folder)
    prepared = decoder.prepare(embedding, given)
    logits, found = decoder.decode(prepared, coords, labels)
    assert logits.shape == expected.shape and np.abs(expected).max() > 0.5
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
    assert np.abs(found - scores).max() <= 1e-4  # no GELU on the way to them

    part, same = decoder.decode(prepared, coords, labels, shown=(GRID - 5, 3))
    np.testing.assert_allclose(part, logits[:, :, : 4 * (GRID - 5), :12], atol=1e-5)
    np.testing.assert_array_equal(same, found)


def test_masks_of_the_demo_scenes_with_fp16_weights(tmp_path: Path) -> None:
    """Every mask of 18 clicks on the demo pictures, against Meta's decoder in fp32.

    The demo's weights are fp16's own, so they are moved to where rounding costs most.
    """
    parameters = moved(read_checkpoint(EXAMPLES / "sam_models/sam_demo.pth"), 5)
    export_browser_decoder(parameters, tmp_path)
    sent = sum((tmp_path / f"{name}.gz").stat().st_size for name in FILES)
    assert sent <= MOST_BYTES
    decoder = BrowserDecoder(tmp_path)
    meta = meta_sam(parameters.encoder_config, parameters=parameters)
    predictor = import_segment_anything().SamPredictor(meta)
    ious, differing = [], []
    for path in sorted((EXAMPLES / "images").glob("*.jpg")):
        image = np.array(Image.open(path).convert("RGB"))
        predictor.set_image(image)
        embedding = predictor.get_image_embedding().numpy()
        prepared = decoder.prepare(embedding)
        height, width = predictor.input_size
        for y in (0.3, 0.7):
            for x in (0.2, 0.5, 0.8):
                coords = np.array([[[x * width, y * height], [0, 0]]], np.float32)
                labels = np.array([[1, -1]], np.float32)
                expected, _ = metas_answer(meta, embedding, coords, labels, None)
                logits, _ = decoder.decode(prepared, coords, labels)
                for ours, theirs in zip(logits[0] > 0, expected[0] > 0, strict=True):
                    union = (ours | theirs).sum()
                    ious.append((ours & theirs).sum() / union if union else 1.0)
                    differing.append((ours ^ theirs).sum() - max(2, 0.01 * union))
    print(f"{len(ious)} masks: IoU mean {np.mean(ious):.5f}, worst {min(ious):.4f}; {sent} bytes")
    assert len(ious) == 3 * 6 * 4
    assert np.mean(ious) > 0.999
    assert max(differing) <= 0  # at most a hundredth of a mask, or two of the 256² pixels


def test_weights_are_halves_and_nothing_else_is(folder: Path, parameters: Parameters) -> None:
    large = {tensor.size for tensor in parameters.decoder().values() if tensor.size >= 4096}
    halves = 0
    for name in FILES:
        for tensor in onnx.load(folder / name).graph.initializer:
            size = int(np.prod(tensor.dims))
            if tensor.data_type == onnx.TensorProto.FLOAT16:
                assert size in large, tensor.name
                halves += size
        plain = (folder / name).read_bytes()
        assert gzip.decompress((folder / f"{name}.gz").read_bytes()) == plain
        assert str(Path(__file__).parents[2]).encode() not in plain  # nothing of where
    every = sum(tensor.size for tensor in parameters.decoder().values() if tensor.size >= 4096)
    assert halves == every


def test_export_is_reproducible(folder: Path, parameters: Parameters, tmp_path: Path) -> None:
    export_browser_decoder(parameters, tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([*FILES, *(f"{name}.gz" for name in FILES)])
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("fault", ["missing", "cut", "altered", "stale", "not sealed"])
def test_what_is_not_whole_is_refused(
    folder: Path, parameters: Parameters, tmp_path: Path, fault: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert BrowserDecoder(tmp_path).parameters_sha256 == parameters.sha256
    file = tmp_path / "decode.onnx"
    content = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    elif fault == "stale":
        (tmp_path / "decode.onnx.gz").write_bytes(gzip.compress(b"of another"))
    elif fault == "altered":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: -100 if fault == "cut" else -1])
    with pytest.raises(EngineError, match="makes it anew") as error:
        BrowserDecoder(tmp_path)
    assert "\n" not in str(error.value)


def test_graphs_of_different_parameters_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    proto = onnx.load(folder / "prepare.onnx")
    kept = [entry for entry in proto.metadata_props if "content" not in entry.key]
    metadata = {entry.key: entry.value for entry in kept}
    onnx.helper.set_model_props(proto, {**metadata, METADATA_PARAMETERS: "0" * 64})
    content = sealed(proto.SerializeToString())
    (tmp_path / "prepare.onnx").write_bytes(content)
    (tmp_path / "prepare.onnx.gz").write_bytes(gzip.compress(content))
    with pytest.raises(EngineError, match="not of one mask decoder"):
        BrowserDecoder(tmp_path)

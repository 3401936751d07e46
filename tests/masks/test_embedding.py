"""Saved embeddings: they come back as they were, and stale or damaged ones are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import tiny_config
from safetensors.torch import save_file

from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import InputError
from samtrt.masks.embedding import image_sha256
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, sam_from_parameters

POINT, LABEL = np.array([[40, 50]]), np.array([1])


def make_sam(seed: int = 0) -> Sam:
    return sam_from_parameters(
        random_parameters(tiny_config(), seed), device="cpu", precision="fp32"
    )


@pytest.fixture(scope="module")
def sam() -> Sam:
    return make_sam()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def saved(sam: Sam, picture: np.ndarray, tmp_path: Path) -> Path:
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    predictor.save_embedding(tmp_path / "picture.safetensors")
    return tmp_path / "picture.safetensors"


def test_loaded_embedding_gives_the_same_masks_without_encoding(
    sam: Sam, picture: np.ndarray, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = SamPredictor(sam)
    encoded.set_image(picture)
    expected = encoded.predict(POINT, LABEL)

    fresh = make_sam()  # the same parameters in another process

    def refuse(*_: object) -> None:
        raise AssertionError("the picture was encoded again")

    monkeypatch.setattr(type(fresh.image_encoder), "__call__", refuse)
    loaded = SamPredictor(fresh)
    loaded.load_embedding(saved, picture)
    assert torch.equal(loaded.get_image_embedding(), encoded.get_image_embedding())
    for a, b in zip(loaded.predict(POINT, LABEL), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_order_of_channels_is_not_part_of_the_picture(
    sam: Sam, picture: np.ndarray, saved: Path
) -> None:
    predictor = SamPredictor(sam)
    predictor.load_embedding(saved, np.ascontiguousarray(picture[..., ::-1]), image_format="BGR")
    assert predictor.is_image_set


def test_the_callers_later_changes_are_not_saved(
    sam: Sam, picture: np.ndarray, tmp_path: Path
) -> None:
    original = picture.copy()
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    picture[:] = 0
    predictor.save_embedding(tmp_path / "e.safetensors")
    predictor.load_embedding(tmp_path / "e.safetensors", original)
    with pytest.raises(InputError, match="stale"):
        predictor.load_embedding(tmp_path / "e.safetensors", picture)


def test_stale_embeddings_are_refused(sam: Sam, picture: np.ndarray, saved: Path) -> None:
    predictor = SamPredictor(sam)
    other = picture.copy()
    other[-1, -1, -1] ^= 1
    predictor.set_image(other)
    before = predictor.get_image_embedding()
    with pytest.raises(InputError, match="stale: it belongs to another picture"):
        predictor.load_embedding(saved, other)
    # A refusal leaves the picture that was set.
    assert predictor.get_image_embedding() is before
    with pytest.raises(InputError, match="stale: it belongs to another parameter set"):
        SamPredictor(make_sam(seed=1)).load_embedding(saved, picture)
    same_bytes = picture.reshape(120, 90, 3)
    assert image_sha256(same_bytes) != image_sha256(picture)
    with pytest.raises(InputError, match="another picture"):
        predictor.load_embedding(saved, same_bytes)


def test_damaged_files_are_refused(
    sam: Sam, picture: np.ndarray, saved: Path, tmp_path: Path
) -> None:
    predictor = SamPredictor(sam)
    with pytest.raises(InputError, match=r"no embedding at .*nothing\.safetensors"):
        predictor.load_embedding(tmp_path / "nothing.safetensors", picture)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        predictor.load_embedding(truncated, picture)
    altered = tmp_path / "altered.safetensors"
    altered.write_bytes(saved.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match="do not have the recorded hash"):
        predictor.load_embedding(altered, picture)
    text = tmp_path / "text.safetensors"
    text.write_text("not an embedding at all")
    with pytest.raises(InputError, match="damaged"):
        predictor.load_embedding(text, picture)
    weights = tmp_path / "weights.safetensors"
    save_file({"features": torch.zeros(1, 256, 8, 8)}, weights)
    with pytest.raises(InputError, match="not an embedding of this version"):
        predictor.load_embedding(weights, picture)
    assert not predictor.is_image_set


def test_what_cannot_be_saved_says_why(sam: Sam, tmp_path: Path) -> None:
    predictor = SamPredictor(sam)
    with pytest.raises(InputError, match="set_image"):
        predictor.save_embedding(tmp_path / "e.safetensors")
    predictor.set_torch_image(torch.zeros(1, 3, 96, 128), (90, 120))
    with pytest.raises(InputError, match="set_torch_image"):
        predictor.save_embedding(tmp_path / "e.safetensors")
    assert list(tmp_path.iterdir()) == []

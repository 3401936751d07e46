"""Saved embeddings: they come back as they were, and stale or damaged ones are refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import tiny_config
from safetensors import safe_open
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


def test_another_encoder_of_the_same_parameters(
    sam: Sam, picture: np.ndarray, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = random_parameters(tiny_config(), 0)
    other = sam_from_parameters(parameters, device="cpu", precision="fp32")
    monkeypatch.setattr(other.image_encoder.encoder, "computed_by", "another encoder")
    predictor = SamPredictor(other)
    with pytest.raises(InputError, match=r"it belongs to another encoder .*, expected another"):
        predictor.load_embedding(saved, picture)
    predictor.load_embedding(saved, picture, same_encoder=False)
    expected = SamPredictor(sam)
    expected.set_image(picture)
    assert torch.equal(predictor.get_image_embedding(), expected.get_image_embedding())
    # What it says of itself is kept when it is saved again.
    predictor.save_embedding(saved)
    expected.load_embedding(saved, picture)
    # And an encoder that is not made is not needed.
    unmade = sam_from_parameters(parameters, device="cpu", precision="fp32")
    monkeypatch.setattr(unmade.image_encoder, "_make", None)
    SamPredictor(unmade).load_embedding(saved, picture, same_encoder=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original_size": [91, 120]}, r"original_size \(91, 120\), expected \(90, 120\)"),
        ({"original_size": [120, 90]}, "original_size"),
        ({"original_size": [90.0, 120]}, "damaged"),
        ({"original_size": [True, 120]}, "damaged"),
        ({"original_size": [0, 120]}, "damaged"),
        ({"original_size": 90}, "damaged"),
        ({"input_size": [96, 127]}, r"input_size \(96, 127\), expected \(96, 128\)"),
        ({"input_size": [128, 128]}, "input_size"),
        ({"input_size": [96, 129]}, "damaged"),
        ({"input_size": [96, 128, 3]}, "damaged"),
        ({"img_size": 256}, "img_size 256, expected 128"),
        ({"img_size": "128x"}, "damaged"),
        ({"image_sha256": "0" * 64}, "another picture"),
        ({"image_sha256": None}, "damaged"),
        ({"parameters_sha256": "0" * 64}, "another parameter set"),
        ({"computed_by": ["cpu"]}, "damaged"),
        ({"computed_by": "cpu"}, "another encoder"),
        ({"features_sha256": "0" * 64}, "do not have the recorded hash"),
        ({"features": torch.zeros(1, 256, 8, 8, dtype=torch.float16)}, "damaged"),
        ({"features": torch.zeros(1, 128, 8, 8)}, "shape"),
        ({"features": torch.zeros(1, 256, 16, 16)}, "shape"),
        ({"features": torch.zeros(1, 256, 8, 9)}, "damaged"),
        ({"features": torch.zeros(2, 256, 8, 8)}, "damaged"),
        ({"features": torch.full((1, 256, 8, 8), torch.nan)}, "not finite"),
    ],
)
def test_altered_files_are_refused(
    sam: Sam, picture: np.ndarray, saved: Path, changes: dict, message: str
) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        features = changes.get("features", file.get_tensor("features"))
    record = json.loads(metadata["embedding"])
    record["features_sha256"] = hashlib.sha256(features.numpy().tobytes()).hexdigest()
    record |= {name: value for name, value in changes.items() if name != "features"}
    metadata["embedding"] = json.dumps(record)
    save_file({"features": features}, saved, metadata=metadata)
    predictor = SamPredictor(sam)
    with pytest.raises(InputError, match=message) as caught:
        predictor.load_embedding(saved, picture)
    assert "\n" not in str(caught.value) and not predictor.is_image_set


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "null", "[" * 100_000, '{"original_size": 1}']
)
def test_metadata_that_is_no_record(sam: Sam, picture: np.ndarray, saved: Path, text: str) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = {**file.metadata(), "embedding": text}
        features = file.get_tensor("features")
    save_file({"features": features}, saved, metadata=metadata)
    with pytest.raises(InputError, match="damaged"):
        SamPredictor(sam).load_embedding(saved, picture)


def test_features_set_by_hand_are_not_saved_under_the_picture(
    sam: Sam, picture: np.ndarray, tmp_path: Path
) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    predictor.features = predictor.features.clone()
    with pytest.raises(InputError, match="use set_image before"):
        predictor.save_embedding(tmp_path / "e.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_says_why(sam: Sam, tmp_path: Path) -> None:
    predictor = SamPredictor(sam)
    with pytest.raises(InputError, match="set_image"):
        predictor.save_embedding(tmp_path / "e.safetensors")
    predictor.set_torch_image(torch.zeros(1, 3, 96, 128), (90, 120))
    with pytest.raises(InputError, match="set_torch_image"):
        predictor.save_embedding(tmp_path / "e.safetensors")
    assert list(tmp_path.iterdir()) == []

"""One door to every backend: what it opens, and what it refuses."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_encoder, relative_l2, tiny_config
from safetensors.torch import load, save_file

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.encoders.engine import ENGINE_FILE, SIDECAR_FILE
from samtrt.encoders.load import default_precision, encoder_from_parameters, load_encoder
from samtrt.encoders.protocol import check_pictures
from samtrt.errors import EngineError, InputError
from samtrt.files import sha256_of
from samtrt.sam import load_sam, sam_from_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETERS = random_parameters(tiny_config(), seed=3)
X = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    options = BuildOptions("cpu", "fp32", max_batch_size=2, skip_parity_gate=True)
    build_encoder(PARAMETERS, folder, [], options)
    return folder


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_loaded_engine_is_metas_encoder(engine: Path, backend: str) -> None:
    with torch.inference_mode():
        expected = meta_encoder(tiny_config(), seed=3)(X)
    output = load_encoder(engine, backend, parameters_sha256=PARAMETERS.sha256)(X)
    assert relative_l2(output, expected) < 1e-5


def test_auto_says_what_it_chose(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "samtrt"):
        load_encoder(engine)
        encoder_from_parameters(PARAMETERS, device="cpu", precision="fp32")
    assert [record.message.partition(", from")[0] for record in caplog.records] == [
        "image encoder: cpu backend, fp32",
        "image encoder: cpu backend, fp32",
    ]


def test_parameters_make_the_same_encoder_as_their_engine(engine: Path) -> None:
    direct = encoder_from_parameters(PARAMETERS, "cpu", precision="fp32", max_batch_size=2)
    assert torch.equal(direct(X), load_encoder(engine)(X))


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_an_explicit_backend_never_falls_back(engine: Path, backend: str) -> None:
    with pytest.raises(EngineError, match=f"cpu backend and {backend} was asked for"):
        load_encoder(engine, backend)


def test_refusals_are_one_line_each(engine: Path, tmp_path: Path) -> None:
    def refused(match: str, **arguments: object) -> None:
        with pytest.raises(EngineError, match=match) as caught:
            load_encoder(**{"engine_dir": engine, **arguments})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    refused("unknown backend abacus", backend="abacus")
    refused("runs on cpu, not on cuda", device="cuda")
    refused("another parameter set", parameters_sha256="0" * 64)
    refused("no engine in", engine_dir=tmp_path)


def test_parameters_do_not_run_on_tensorrt_without_an_engine() -> None:
    with pytest.raises(EngineError, match="tensorrt backend runs engines only"):
        encoder_from_parameters(PARAMETERS, "tensorrt")


def test_half_precision_on_gpus_by_default() -> None:
    assert default_precision("cuda") == default_precision("tensorrt") == "fp16"
    assert default_precision("cpu") in ("bf16", "fp32")


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 128, 128),
        torch.zeros(0, 3, 128, 128),
        torch.zeros(3, 3, 128, 128),
        torch.zeros(1, 3, 128, 64),
        torch.zeros(1, 4, 128, 128),
        torch.zeros(1, 3, 128, 128, dtype=torch.float16),
        torch.zeros(1, 3, 128, 128, dtype=torch.uint8),
        torch.zeros(1, 3, 128, 128, device="meta"),
    ],
    ids=lambda x: f"{list(x.shape)} {x.dtype} {x.device}",
)
def test_pictures_of_another_shape_dtype_or_device_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"takes pictures of \[1…2, 3, 128, 128\] float32 on cpu"):
        check_pictures(x, 128, torch.device("cpu"), 2)


def test_the_engine_refuses_a_larger_batch_than_it_was_built_for(engine: Path) -> None:
    with pytest.raises(InputError, match="--max-batch-size"):
        load_encoder(engine)(torch.cat([X, X]))


def altered(engine: Path, folder: Path, **changes: object) -> Path:
    """A copy of the engine folder with those fields of its sidecar changed."""
    shutil.copytree(engine, folder)
    path = folder / SIDECAR_FILE
    record = json.loads(path.read_text())
    record["config"] |= changes.pop("config", {})
    path.write_text(json.dumps(record | changes))
    return folder


def without_metadata(engine: Path, folder: Path) -> Path:
    """A copy as the first versions wrote it: the packed file says nothing but its tensors."""
    content = load((engine / ENGINE_FILE).read_bytes())
    shutil.copytree(engine, folder)
    save_file(content, folder / ENGINE_FILE)
    path = folder / SIDECAR_FILE
    sha256 = sha256_of(folder / ENGINE_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine_sha256": sha256}))
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": {"global_attn_indexes": [0]}}, "config"),
        ({"config": {"global_attn_indexes": []}}, "config"),
        ({"config": {"window_size": 6}}, "config"),
        ({"config": {"num_heads": 4}}, "config"),
        ({"config": {"img_size": 256}}, "config"),
        ({"config": {"layer_norm_eps": 1e-3}}, "config"),
        ({"precision": "bf16"}, "precision"),
        ({"max_batch_size": 4}, "max_batch_size"),
        ({"note": "trained"}, "note"),
        ({"parameters_sha256": "0" * 64}, "parameters_sha256"),
    ],
    ids=str,
)
def test_an_altered_sidecar_is_refused(
    engine: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    folder = altered(engine, tmp_path / "altered", **changes)
    with pytest.raises(EngineError, match=f"altered after its build: its {named} is not") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


def test_an_engine_of_the_first_versions_is_read(engine: Path, tmp_path: Path) -> None:
    folder = without_metadata(engine, tmp_path / "first")
    assert torch.equal(load_encoder(folder)(X), load_encoder(engine)(X))
    for number, changes in enumerate(
        [{"config": {"global_attn_indexes": [0]}}, {"config": {"window_size": 6}}]
    ):
        with pytest.raises(EngineError, match="its config is not"):
            load_encoder(altered(folder, tmp_path / str(number), **changes))
    with pytest.raises(EngineError, match="its precision is not"):
        load_encoder(altered(folder, tmp_path / "bf16", precision="bf16"))


def test_what_becomes_of_the_file_does_not_reach_an_encoder(engine: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(engine, tmp_path / "engine")
    encoder = load_encoder(folder)
    expected = encoder(X)
    with (folder / ENGINE_FILE).open("r+b") as file:
        file.write(bytes(1 << 20))
    assert torch.equal(encoder(X), expected)
    os.truncate(folder / ENGINE_FILE, 10)
    assert torch.equal(encoder(X), expected)
    with pytest.raises(EngineError, match="was altered after its build"):
        load_encoder(folder)


@pytest.mark.parametrize("fault", ["altered", "truncated", "missing", "other parameters"])
def test_a_model_refuses_an_unusable_engine_when_it_is_loaded(
    engine: Path, tmp_path: Path, fault: str
) -> None:
    folder = shutil.copytree(engine, tmp_path / "engine")
    seed = 4 if fault == "other parameters" else 3
    save_parameters(random_parameters(tiny_config(), seed), tmp_path / "parameters")
    if fault == "altered":
        with (folder / ENGINE_FILE).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read()
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
    elif fault == "truncated":
        os.truncate(folder / ENGINE_FILE, 1000)
    elif fault == "missing":
        (folder / ENGINE_FILE).unlink()
    with pytest.raises(EngineError) as caught:
        load_sam(folder, tmp_path / "parameters")
    assert "\n" not in str(caught.value)


def test_a_model_refuses_a_backend_without_engine_when_it_is_loaded(tmp_path: Path) -> None:
    save_parameters(PARAMETERS, tmp_path)
    with pytest.raises(EngineError, match="runs engines only"):
        load_sam(tmp_path, backend="tensorrt", device="cpu")


def test_an_error_of_the_encoders_making_is_told_as_it_is() -> None:
    sam = sam_from_parameters(PARAMETERS, device="cpu")

    def fail(_: torch.device) -> None:
        raise AttributeError("module 'missing' has no attribute 'thing'")

    sam.image_encoder._make = fail
    with pytest.raises(RuntimeError, match="cannot be made: module 'missing' has no attribute"):
        sam.embed(np.zeros((9, 9, 3), np.uint8))

"""One door to every backend: what it opens, and what it refuses."""

import logging
from pathlib import Path

import pytest
import torch
from oracle import meta_encoder, relative_l2, tiny_config

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.load import default_precision, encoder_from_parameters, load_encoder
from samtrt.encoders.protocol import check_pictures
from samtrt.errors import EngineError, InputError

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

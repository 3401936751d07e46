"""build --precision fp8: calibrated, as few linears in fp16 as the gate allows, or refused.

The reference in torch stands in for the GPU's kernels.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton_kernels  # noqa: F401 (before the kernels: it chooses Triton's interpreter)
from oracle import tiny_config
from torch import Tensor

from samtrt.building import build, fp8
from samtrt.building.accuracy import load_picture
from samtrt.building.build import BuildOptions, ParityError, build_encoder
from samtrt.building.gate_pictures import calibration_pictures, drawn_pictures
from samtrt.building.parity import Limits
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders import cuda, engine, load
from samtrt.encoders.cuda.encoder import FusedImageEncoder, check_fp8
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.quantisation import Fp8Plan, all_linears, parse_linears
from samtrt.encoders.engine import PASSED, SIDECAR_FILE, read_engine_info
from samtrt.encoders.load import encoder_from_parameters, load_encoder
from samtrt.errors import EngineError, InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config(img_size=64, depth=2)
PARAMETERS = random_parameters(CONFIG, seed=6)
LOOSE, IMPOSSIBLE = Limits(0.5, 0.0, 0.0), Limits(1e-9, 1.0, 1.0)


class StandIn(Fp8Reference):
    """The reference in place of the kernels, on what an engine has."""

    def __init__(
        self,
        config: object,
        tensors: Mapping[str, Tensor],
        precision: str,
        device: object,
        max_batch_size: int,
        any_batch_size: bool = False,
        fp8: Fp8Plan | None = None,
    ) -> None:
        assert (config, precision) == (CONFIG, "fp8") and fp8 is not None
        assert fp8.linears == fp8.packed.keys()
        for block, name in all_linears(CONFIG):
            # A weight is there once.
            assert (f"blocks.{block}.{name}.weight" in tensors) == (
                (block, name) not in fp8.linears
            )
        super().__init__(CONFIG, PARAMETERS.encoder(), fp8)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "require_fp8", lambda _: torch.device("cpu"))
    monkeypatch.setattr(cuda, "FusedImageEncoder", StandIn)
    for module in (build, engine):
        monkeypatch.setattr(module, "compute_capability", lambda *_: "9.0")
    monkeypatch.setattr(load, "_device", lambda *_: torch.device("cpu"))


def limit(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    monkeypatch.setitem(build.LIMITS, "fp8", limits)


PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for seed in range(4)
]
OPTIONS = BuildOptions("cuda", "fp8", calibrate=PICTURES[:2])


@pytest.mark.usefixtures("hopper")
def test_all_linears_where_the_gate_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, LOOSE)
    info = build_encoder(PARAMETERS, tmp_path, PICTURES[2:], OPTIONS)
    assert info.fp8 is not None and info.parity.status == PASSED
    assert (info.fp8.linears, info.fp8.fp16_linears, info.fp8.automatic) == (8, (), True)
    assert len(info.fp8.errors) == 8 and min(info.fp8.errors.values()) > 0
    assert "all 8 linear layers in e4m3" in info.summary()
    assert read_engine_info(tmp_path) == info and info.compute_capability == "9.0"
    picture = load_picture(drawn_pictures()[0], 64).pixels
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, StandIn)
    exact = Fp8Reference(CONFIG, PARAMETERS.encoder())(picture)
    assert 0 < ((loaded(picture) - exact).norm() / exact.norm()).item() < 0.5
    again = build_encoder(PARAMETERS, tmp_path / "again", PICTURES[2:], OPTIONS)
    assert again.engine_sha256 == info.engine_sha256


@pytest.mark.usefixtures("hopper")
def test_what_costs_most_stays_in_fp16_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit(monkeypatch, LOOSE)
    full = build_encoder(PARAMETERS, tmp_path, PICTURES[2:], OPTIONS)
    assert full.parity.relative_l2 is not None
    limit(monkeypatch, replace(LOOSE, relative_l2=0.6 * full.parity.relative_l2))
    with caplog.at_level(logging.INFO):
        info = build_encoder(PARAMETERS, tmp_path, PICTURES[2:], OPTIONS)
    assert info.fp8 is not None and info.parity.status == PASSED
    kept = info.fp8.fp16_linears
    assert 0 < len(kept) < 8 and f"{len(kept)} of 8 linear layers stay in fp16" in caplog.text
    costs = {
        name: error**2 / np.prod(PARAMETERS.encoder()[f"blocks.{name}.weight"].shape)
        for name, error in info.fp8.errors.items()
    }
    assert set(kept) == set(sorted(costs, key=lambda name: costs[name])[-len(kept) :])
    assert ", ".join(kept) in info.summary()


@pytest.mark.usefixtures("hopper")
def test_linears_kept_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, LOOSE)
    info = build_encoder(
        PARAMETERS, tmp_path, PICTURES[2:], replace(OPTIONS, fp8_keep="1, 0.mlp.lin2")
    )
    assert info.fp8 is not None and not info.fp8.automatic and info.fp8.errors == {}
    assert info.fp8.fp16_linears == (
        "0.mlp.lin2", "1.attn.qkv", "1.attn.proj", "1.mlp.lin1", "1.mlp.lin2"
    )  # fmt: skip
    assert isinstance(load_encoder(tmp_path), StandIn)
    limit(monkeypatch, IMPOSSIBLE)
    with pytest.raises(ParityError, match="did not pass the parity gate and was not written"):
        build_encoder(PARAMETERS, tmp_path, PICTURES[2:], replace(OPTIONS, fp8_keep="none"))
    assert read_engine_info(tmp_path) == info


@pytest.mark.usefixtures("hopper")
def test_no_engine_where_no_linear_can_be_in_fp8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, IMPOSSIBLE)
    with pytest.raises(EngineError, match="no linear layer of this encoder can be in FP8"):
        build_encoder(PARAMETERS, tmp_path, PICTURES[2:], OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hopper")
def test_more_stays_in_fp16_where_the_kernels_do_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, LOOSE)
    tried: list[int] = []
    judge = build.check_parity

    def strict(encoder: StandIn, *rest: object) -> object:
        result = judge(encoder, *rest)  # type: ignore[arg-type]
        assert encoder.plan is not None
        tried.append(len(encoder.plan.linears))
        return result if len(tried) > 2 else replace(result, status="failed")

    monkeypatch.setattr(build, "check_parity", strict)
    info = build_encoder(PARAMETERS, tmp_path, PICTURES[2:], OPTIONS)
    assert info.fp8 is not None
    assert tried == [8, 7, 6] and len(info.fp8.fp16_linears) == 2


@pytest.mark.usefixtures("hopper")
def test_an_altered_sidecar_or_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, LOOSE)
    build_encoder(PARAMETERS, tmp_path, PICTURES[2:], replace(OPTIONS, fp8_keep="1"))
    sidecar = tmp_path / SIDECAR_FILE
    record = json.loads(sidecar.read_text("utf-8"))
    for changed, message in (
        ({**record, "fp8": {**record["fp8"], "fp16_linears": ["0.mlp.lin1"]}}, "fp16_linears"),
        ({**record, "fp8": {**record["fp8"], "fp16_linears": ["0.mlp.lin3"]}}, "damaged"),
        ({key: record[key] for key in record if key != "fp8"}, "damaged"),
        ({**record, "compute_capability": None}, "damaged"),
        ({**record, "precision": "fp16"}, "damaged"),
    ):
        sidecar.write_text(json.dumps(changed), "utf-8")
        with pytest.raises(EngineError, match=message):
            load_encoder(tmp_path)


@pytest.mark.parametrize(
    "text", ["2", "x", "0.mlp", "0.mlp.lin3", "1,,0", "-1", "0,1", "0.attn.qkv.weight"]
)
def test_what_is_no_linear_is_refused(text: str) -> None:
    with pytest.raises(InputError) as error:
        fp8.kept_linears(text, PARAMETERS)
    assert "\n" not in str(error.value)


def test_names_of_linears() -> None:
    assert parse_linears(["1"], CONFIG) == {
        (1, n) for n in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
    }
    assert fp8.kept_linears("1.attn.qkv,0.mlp.lin2", PARAMETERS) == {
        (1, "attn.qkv"),
        (0, "mlp.lin2"),
    }
    assert fp8.kept_linears("none", PARAMETERS) == frozenset()
    assert fp8.kept_linears("auto", PARAMETERS) is None


def test_no_fp8_without_a_gpu_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="H100 or H200, and here torch finds no NVIDIA GPU"):
        build_encoder(PARAMETERS, tmp_path, PICTURES[2:], OPTIONS)
    assert list(tmp_path.iterdir()) == []
    for backend, message in (("cuda", "fp8 runs from an engine"), ("cpu", "not in fp8")):
        with pytest.raises(EngineError, match=message):
            encoder_from_parameters(PARAMETERS, backend, precision="fp8")


def test_the_runtime_refuses_fp8_elsewhere_than_on_hopper() -> None:
    plan = Fp8Plan(frozenset(), *(torch.ones(1) for _ in range(3)))
    with pytest.raises(EngineError, match=r"compute capability 9\.0 .* this is a CPU"):
        FusedImageEncoder(CONFIG, PARAMETERS.encoder(), "fp8", "cpu", fp8=plan)
    for precision, given in (("fp8", None), ("fp16", plan)):
        with pytest.raises(EngineError, match="a plan of its scales"):
            FusedImageEncoder(CONFIG, PARAMETERS.encoder(), precision, "cpu", fp8=given)


@pytest.mark.parametrize(
    "capability, changes, message",
    [
        ((8, 9), {}, r"needs a GPU of compute capability 9\.0 .* this is compute capability 8\.9"),
        ((10, 0), {}, r"this is compute capability 10\.0"),
        (
            (9, 0),
            {"num_heads": 4},
            "no FP8 kernels for an encoder of 192 channels, MLPs of 768, heads",
        ),
        ((9, 0), {"mlp_dim": 40}, "MLPs of 40"),
        ((9, 0), {"mlp_dims": (64, 768)}, "MLPs differ"),
    ],
)
def test_only_what_has_kernels(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    changes: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    sizes: dict[str, object] = {"embed_dim": 192, "num_heads": 3, "window_size": 14}
    config = tiny_config(**{**sizes, "img_size": 1024, "depth": 2, **changes})
    with pytest.raises(EngineError, match=message):
        check_fp8(config, torch.device("cuda", 0))
    if not changes:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        check_fp8(config, torch.device("cuda", 0))


def test_calibration_has_pictures_of_its_own() -> None:
    shapes = [picture.shape for picture in calibration_pictures()]
    assert len(shapes) == 4 and len(set(shapes)) == 2
    assert not any(
        np.array_equal(one, other) for one in calibration_pictures() for other in drawn_pictures()
    )

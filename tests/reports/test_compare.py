"""The metrics against numbers worked out by hand, and the script on a tiny model."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import tiny_config
from scripts import call_script, load_script

from samtrt.building.accuracy import (
    error_statistics,
    load_picture,
    load_pictures,
    mask_iou,
    prompts_of,
    relative_l2,
    worst,
)
from samtrt.building.build import BuildOptions, build_encoder
from samtrt.building.parity import fp32_decoder
from samtrt.checkpoints.parameters import Parameters, random_parameters, save_parameters
from samtrt.encoders.cpu import has_fast_bf16
from samtrt.errors import InputError
from samtrt.pictures.reading import save_png
from samtrt.reports.contestants import meta_decoder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_error_statistics_by_hand() -> None:
    reference = torch.tensor([2.0, -4.0, 0.0, 8.0])
    output = torch.tensor([3.0, -4.0, 0.5, 6.0])
    errors = error_statistics(output, reference)
    assert errors.absolute_max == 2
    assert errors.absolute_mean == pytest.approx(3.5 / 4)
    assert errors.absolute_median == 0.5  # torch takes the lower of the two in the middle
    assert errors.relative_max == 0.5  # the element whose reference is zero has none
    assert errors.relative_mean == pytest.approx(0.75 / 3)
    assert errors.relative_median == 0.25
    assert errors.relative_l2 == pytest.approx((5.25 / 84) ** 0.5)


def test_nan_shows_in_every_statistic() -> None:
    errors = error_statistics(torch.tensor([1.0, torch.nan]), torch.ones(2))
    assert all(np.isnan(value) for value in vars(errors).values())


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match="differ"):
        error_statistics(torch.ones(2), torch.ones(1, 2))


def test_relative_l2_is_computed_in_float64() -> None:
    reference = torch.full((1 << 16,), 1.0)
    assert relative_l2(reference + 2**-20, reference) == pytest.approx(2**-20, rel=1e-6)


def test_the_worst_error_is_nan_wherever_it_stands() -> None:
    assert worst([0.1, 0.3, 0.2]) == 0.3
    assert np.isnan(worst([0.1, float("nan"), 0.2])) and np.isnan(worst([float("nan"), 0.2]))


def test_mask_iou_by_hand() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    others = masks.clone()
    masks[0, :2], others[0, 1:3] = True, True  # 4 of 12
    masks[1, 0] = True  # nothing in common
    assert mask_iou(masks, others).tolist() == pytest.approx([1 / 3, 0, 1])


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    save_png(path, np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))
    return path


def test_prompts_lie_inside_the_picture(picture: Path) -> None:
    loaded = load_picture(picture, 128)
    assert loaded.input_size == (96, 128)
    prompts = prompts_of(loaded)
    coords, labels = prompts.coords, prompts.labels
    assert coords.shape == (14, 2, 2) and labels.shape == (14, 2)
    inside = (coords >= 0) & (coords <= torch.tensor([128.0, 96.0]))
    assert inside.all()
    assert labels.unique(dim=0).tolist() == [[1, -1], [2, 3]]


def test_both_decoders_give_the_same_masks(parameters: Parameters, picture: Path) -> None:
    embedding = torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = load_picture(picture, 128)
    given = loaded.embedded(embedding), prompts_of(loaded)
    expected = meta_decoder(parameters)(*given)
    masks = fp32_decoder(parameters)(*given)
    assert relative_l2(masks, expected) < 1e-5
    assert relative_l2(expected[:9], expected[1:10]) > 0.01  # prompts matter


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return random_parameters(tiny_config(), seed=7)


@pytest.fixture(scope="module")
def model(parameters: Parameters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_parameters(parameters, folder)
    options = BuildOptions("cpu", "fp32", skip_parity_gate=True)
    build_encoder(parameters, folder / "engine", [], options)
    return folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("compare")


def test_script_reports_every_encoder(
    script: ModuleType, model: Path, picture: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    status, out, _ = call_script(
        script, "--params", model, "--engine", model / "engine", "--image", picture, picture,
        "--json", record,
    )  # fmt: skip
    assert status == 0
    rows = {row["name"]: row for row in json.loads(record.read_text())["rows"]}
    exact = rows["samtrt cpu fp32"]
    assert exact["embedding"]["relative_l2"] < 1e-5 and exact["worst_mask_iou"] > 0.999
    engine = rows[f"samtrt cpu fp32, engine {model / 'engine'}"]
    assert engine["embedding"] == exact["embedding"]
    assert ("samtrt cpu bf16" in rows) == has_fast_bf16()
    if has_fast_bf16():
        errors = (rows[f"{name} bf16"]["embedding"] for name in ("samtrt cpu", "segment_anything"))
        ours, metas = (error["relative_l2"] for error in errors)
        assert 1e-4 < ours < 1.5 * metas
    assert all(name in out for name in rows)


def test_an_engine_of_other_parameters_is_refused(
    script: ModuleType, model: Path, picture: Path, tmp_path: Path
) -> None:
    save_parameters(random_parameters(tiny_config(), seed=8), tmp_path)
    flags = ("--params", tmp_path, "--engine", model / "engine", "--image", picture)
    status, _, err = call_script(script, *flags)
    assert status == 1 and "another parameter set" in err.splitlines()[-1]


def test_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="no picture"):
        load_pictures([], 128)

"""The parity gate passes what is right and nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import tiny_config

from samtrt.building import parity
from samtrt.building.parity import check_parity
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.engine import FAILED, PASSED, ParityResult
from samtrt.encoders.load import encoder_from_parameters
from samtrt.errors import InputError
from samtrt.pictures.reading import save_png

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETERS = random_parameters(tiny_config(), seed=4)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    save_png(path, pixels)
    return path


class Changed:
    """The right encoder with its output changed."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._encoder = encoder_from_parameters(PARAMETERS, "cpu", precision="fp32")
        self._change = change
        self.img_size, self.device = self._encoder.img_size, self._encoder.device

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._change(self._encoder(x))


def judge(picture: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> ParityResult:
    return check_parity(Changed(change), PARAMETERS, [picture])


def test_the_right_encoder_passes(picture: Path) -> None:
    result = check_parity(Changed(lambda y: y), PARAMETERS, [picture, picture])
    assert (result.status, result.pictures) == (PASSED, 2)
    assert result.relative_l2 is not None and result.relative_l2 < 1e-6
    assert result.mean_mask_iou is not None and result.mean_mask_iou > 0.9999


def test_the_error_that_is_measured_is_the_one_that_was_made(picture: Path) -> None:
    result = judge(picture, lambda y: 1.02 * y)
    assert result.relative_l2 == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: 1.04 * y,
        lambda y: y.roll(1, dims=-1),
        lambda y: torch.full_like(y, torch.nan),
        lambda y: y.index_fill(1, torch.tensor([0]), torch.inf),
        torch.zeros_like,
    ],
    ids=["4 % off", "shifted by a token", "NaN", "inf", "zeros"],
)
def test_a_wrong_embedding_fails(
    picture: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    assert judge(picture, change).status == FAILED


def test_wrong_masks_fail_although_the_embedding_is_near(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "mask_ious", lambda *_: torch.full((14, 4), 0.98))
    result = judge(picture, lambda y: y)
    assert (result.status, result.mean_mask_iou) == (FAILED, pytest.approx(0.98))


def test_one_bad_picture_among_good_ones_fails(picture: Path) -> None:
    calls = iter([1.0, 1.05, 1.0])
    result = check_parity(Changed(lambda y: next(calls) * y), PARAMETERS, [picture] * 3)
    assert result.status == FAILED
    assert result.relative_l2 == pytest.approx(0.05, rel=1e-3)


def test_nothing_to_compare_on_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one picture"):
        check_parity(Changed(lambda y: y), PARAMETERS, [])

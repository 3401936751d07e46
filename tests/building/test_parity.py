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
    return check_parity(Changed(change), PARAMETERS, [picture], "fp32")


def test_the_right_encoder_passes(picture: Path) -> None:
    result = check_parity(Changed(lambda y: y), PARAMETERS, [picture, picture], "fp32")
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
    monkeypatch.setattr(parity, "mask_ious", lambda *_: torch.full((14, 4), 0.995))
    result = judge(picture, lambda y: y)
    assert (result.status, result.mean_mask_iou) == (FAILED, pytest.approx(0.995))


def test_one_bad_picture_among_good_ones_fails(picture: Path) -> None:
    calls = iter([1.0, 1.05, 1.0])
    result = check_parity(Changed(lambda y: next(calls) * y), PARAMETERS, [picture] * 3, "fp32")
    assert result.status == FAILED
    assert result.relative_l2 == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_the_limits_are_the_precisions(
    picture: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "mask_ious", lambda *_: torch.ones(14, 4))
    # In units of the last place: 8 of float16 and of bfloat16, some 80 of float32.
    limit = {"fp16": 8 / 2048, "bf16": 8 / 256, "fp32": 1e-5}[precision]
    for factor, status in ((0.95, PASSED), (1.05, FAILED)):
        wrong = Changed(lambda y, factor=factor: y * (1 + factor * limit))
        assert check_parity(wrong, PARAMETERS, [picture], precision).status == status


@pytest.mark.parametrize(
    ("precision", "worst_iou", "status"),
    [
        ("fp16", 0.981, PASSED),
        ("fp16", 0.979, FAILED),
        ("bf16", 0.56, PASSED),
        ("bf16", 0.54, FAILED),
        ("fp32", 0.991, PASSED),
        ("fp32", 0.989, FAILED),
        ("bf16", float("nan"), FAILED),
    ],
)
def test_one_wrong_mask_fails(
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    worst_iou: float,
    status: str,
) -> None:
    ious = torch.ones(1400, 4)
    ious[7, 2] = worst_iou
    monkeypatch.setattr(parity, "mask_ious", lambda *_: ious)
    result = check_parity(Changed(lambda y: y), PARAMETERS, [picture], precision)
    assert result.status == status
    assert result.worst_mask_iou == pytest.approx(worst_iou, nan_ok=True)


class WrongInBatch(Changed):
    """Right for a picture alone; one place of a batch gets another's embedding."""

    def __init__(self, place: int, batch_size: int) -> None:
        super().__init__(lambda y: y)
        self.max_batch_size = batch_size
        self.place = place
        self.sizes: list[int] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        output = torch.cat([self._encoder(picture) for picture in x.split(1)])
        if len(x) > 1 and self.place >= 0:
            output[self.place] *= 1.001
        return output


@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_every_place_of_the_largest_batch_is_compared(picture: Path, pictures: int) -> None:
    for place in (-1, 0, 2, 3):
        encoder = WrongInBatch(place, 4)
        result = check_parity(encoder, PARAMETERS, [picture] * pictures, "fp32", 4)
        assert result.status == (PASSED if place < 0 else FAILED), place
        assert set(encoder.sizes) == {1, 4} and encoder.sizes.count(1) == pictures


def test_nothing_to_compare_on_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one picture"):
        check_parity(Changed(lambda y: y), PARAMETERS, [], "fp32")


def test_the_documented_limits_are_these() -> None:
    readme = Path(__file__).parents[2] / "examples/sam/README.md"
    text = readme.read_text("utf-8")
    for precision, limits in parity.LIMITS.items():
        assert (
            f"| {precision} | above {100 * limits.relative_l2:.2g} % | "
            f"below {limits.mean_mask_iou} | below {limits.worst_mask_iou} |"
        ) in text

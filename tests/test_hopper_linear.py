"""The linear layers for Hopper: their machine code anywhere, their values on a Hopper GPU."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hopper_kernels import NEEDS_HOPPER, machine_code
from triton_kernels import DEVICE

from samtrt.errors import EngineError
from samtrt.kernels.hopper.linear import (
    MIDDLE,
    NARROW,
    NORMALISED,
    NORMALISED_GELU,
    RESIDUAL,
    TALL,
    TALL_NARROW,
    WIDE,
    LinearTiles,
    fold_layer_norm,
    normalised_linear,
    normalised_tiles,
    residual_linear,
    residual_tiles,
    statistics_parts,
)
from samtrt.kernels.norm import row_statistics

EPS = 1e-6
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def random(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE)


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    assert out.shape == reference.shape
    return float((out.double() - reference).norm() / reference.norm())


@TYPES
@pytest.mark.parametrize(
    ("tiles", "epilogue"),
    [
        (WIDE, NORMALISED),
        (MIDDLE, NORMALISED_GELU),
        (NARROW, NORMALISED_GELU),
        (TALL, RESIDUAL),
        (TALL_NARROW, RESIDUAL),
        (WIDE, RESIDUAL),
    ],
)
def test_machine_code(tiles: LinearTiles, epilogue: int, dtype: torch.dtype) -> None:
    code = machine_code(tiles.program(epilogue, dtype, 8))
    assert code["spills"] == 0 and code["stack"] == 0
    # One wait inside the loop, one after it and their copies: serialised products have one each.
    assert code["wgmma"] >= 8 > code["waits"]
    assert tiles.shared_bytes <= 227 * 1024


def test_folded_layer_norm_is_the_layer_norm() -> None:
    weight, bias = random(24, 40, seed=0).double(), random(24, seed=1).double()
    gain, offset = random(40, seed=2).double(), random(40, seed=3).double()
    x = random(9, 40, seed=4).double() * 3 + 5
    folded, constant = fold_layer_norm(weight, bias, gain, offset)
    deviation = x.var(1, correction=0, keepdim=True).add(EPS).sqrt()
    expected = F.layer_norm(x, (40,), gain, offset, EPS) @ weight.t() + bias
    torch.testing.assert_close(x @ folded.t() / deviation + constant, expected)


def test_tiles_leave_no_multiprocessor_waiting() -> None:
    assert normalised_tiles(4096, 3840, 132) == WIDE  # five rounds: 640 of 660 tiles
    assert normalised_tiles(4096, 5120, 132) == MIDDLE  # eight: 1024 of 1056
    assert residual_tiles(4096, 1280, 132) == TALL  # one: 128 of 132
    assert residual_tiles(4096, 1024, 132) == TALL_NARROW
    assert residual_tiles(4096, 768, 132) == WIDE
    assert residual_tiles(4096, 96, 132) is None


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("tiles", [WIDE, MIDDLE, NARROW])
@pytest.mark.parametrize(
    ("rows", "columns", "inner"), [(4096, 640, 1280), (300, 200, 264), (1, 8, 8), (2500, 1920, 64)]
)
def test_normalised_linear(
    rows: int, columns: int, inner: int, tiles: LinearTiles, gelu: bool, dtype: torch.dtype
) -> None:
    x = (random(rows, inner, seed=0) + random(inner, seed=1)).to(dtype)
    weight, bias = random(columns, inner, seed=2, scale=inner**-0.5), random(columns, seed=3)
    gain, offset = random(inner, seed=4), random(inner, seed=5)
    folded, constant = fold_layer_norm(weight, bias, gain, offset)
    statistics = torch.full((1, rows, 2), float("nan"), device=DEVICE)
    row_statistics(x, statistics)
    out = torch.full((rows, columns), float("nan"), device=DEVICE, dtype=dtype)
    normalised_linear(x, statistics, folded.to(dtype), constant, out, EPS, gelu, tiles)
    normed = F.layer_norm(x.double(), (inner,), gain.double(), offset.double(), EPS)
    expected = normed @ weight.double().t() + bias.double()
    assert relative_error(out, F.gelu(expected) if gelu else expected) < TOLERANCE[dtype]


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "inner"), [(4096, 1280, 1280), (300, 256, 264), (2048, 768, 3072)]
)
def test_residual_linear(
    rows: int, columns: int, inner: int, in_place: bool, dtype: torch.dtype
) -> None:
    a, x = random(rows, inner, seed=0).to(dtype), random(rows, columns, seed=1).to(dtype)
    weight = random(columns, inner, seed=2, scale=inner**-0.5).to(dtype)
    bias = random(columns, seed=3)
    expected = x.double() + a.double() @ weight.double().t() + bias.double()
    parts = statistics_parts(rows, columns, DEVICE)
    statistics = torch.full((parts, rows, 2), float("nan"), device=DEVICE)
    out = x if in_place else torch.full_like(x, float("nan"))
    residual_linear(a, weight, bias, x, out, statistics)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    groups = out.double().view(rows, parts, -1).transpose(0, 1)
    torch.testing.assert_close(statistics[..., 0].double(), groups.sum(2), rtol=1e-5, atol=1e-3)
    squares = groups.var(2, correction=0) * (columns // parts)
    torch.testing.assert_close(statistics[..., 1].double(), squares, rtol=1e-5, atol=1e-3)


@pytest.mark.gpu
@NEEDS_HOPPER
def test_statistics_in_parts_are_merged_and_residual_rows_repeat() -> None:
    """The statistics that one layer writes normalise the next as LayerNorm does."""
    rows, channels = 512, 1280
    a, x = random(rows, 320, seed=0).half(), (random(128, channels, seed=1) * 2 + 3).half()
    weight, bias = random(channels, 320, seed=2, scale=0.05).half(), random(channels, seed=3)
    statistics = torch.empty(8, rows, 2, device=DEVICE)
    out = torch.empty(rows, channels, device=DEVICE, dtype=torch.float16)
    residual_linear(a, weight, bias, x, out, statistics)
    expected = x.double().repeat(4, 1) + a.double() @ weight.double().t() + bias.double()
    assert relative_error(out, expected) < 1e-3

    following, zero = random(256, channels, seed=4, scale=channels**-0.5), torch.zeros(256)
    one, none = torch.ones(channels, device=DEVICE), torch.zeros(channels, device=DEVICE)
    folded, constant = fold_layer_norm(following, zero.to(DEVICE), one, none)
    normed = torch.empty(rows, 256, device=DEVICE, dtype=torch.float16)
    normalised_linear(out, statistics, folded.half(), constant, normed, EPS, False)
    expected = F.layer_norm(out.double(), (channels,), eps=EPS) @ following.double().t()
    assert relative_error(normed, expected) < 1e-3


def test_unsupported_shapes_raise_one_line() -> None:
    def layer(columns: int, inner: int, tiles: LinearTiles | None) -> None:
        x, out = torch.zeros(16, inner), torch.zeros(16, columns)
        weight, bias = torch.zeros(columns, inner), torch.zeros(columns)
        statistics = torch.zeros(1, 16, 2)
        if tiles is None:
            residual_linear(x, weight, bias, out, out, statistics)
        else:
            normalised_linear(x, statistics, weight, bias, out, EPS, False, tiles)

    for columns, inner, tiles, match in (
        (96, 64, None, "equal parts"),
        (64, 60, NARROW, "multiples of 8"),
        (60, 64, dataclasses.replace(NARROW, stages=3), "multiples of 8"),
    ):
        with pytest.raises(EngineError, match=match) as error:
            layer(columns, inner, tiles)
        assert "\n" not in str(error.value)

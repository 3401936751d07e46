"""The linear layers for Hopper: their machine code anywhere, their values on a Hopper GPU."""

import pytest
import torch
import torch.nn.functional as F
from hopper_kernels import NEEDS_HOPPER, TYPES, machine_code
from kernel_references import (
    TOLERANCE,
    assert_e4m3_of,
    random,
    relative_error,
    row_statistics,
)
from triton_kernels import DEVICE

from samtrt.errors import EngineError
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper.linear import (
    GELU,
    GELU_HALVES,
    MIDDLE,
    NARROW,
    NORMALISED,
    NORMALISED_GELU,
    QUANTISED_GROUP,
    REPEATED_ROWS,
    RESIDUAL,
    RESIDUAL_TILES,
    SHORT_WIDE,
    TALL,
    TALL_NARROW,
    WIDE,
    Linear,
    LinearTiles,
    fold_layer_norm,
    linear_layer,
    normalised_tiles,
    quantised_order,
    residual_tiles,
    statistics_parts,
)

EPS = 1e-6


@TYPES
@pytest.mark.parametrize(
    ("tiles", "epilogue"),
    [
        (WIDE, NORMALISED),
        (WIDE, NORMALISED_GELU),
        (MIDDLE, NORMALISED_GELU),
        (NARROW, NORMALISED_GELU),
        *((tiles, RESIDUAL) for tiles in RESIDUAL_TILES),
    ],
)
def test_machine_code(tiles: LinearTiles, epilogue: int, dtype: torch.dtype) -> None:
    code = machine_code(tiles.program(epilogue, dtype, 8))
    assert code["spills"] == 0 and code["stack"] == 0
    # One in the loop, one after it: serialised products would have one each.
    assert code["waits"] == 2
    assert tiles.shared_bytes() <= 227 * 1024


@pytest.mark.parametrize(
    ("fp8_operands", "fp8_output"), [(False, True), (True, False), (True, True)]
)
@pytest.mark.parametrize(
    ("tiles", "epilogue"),
    [
        *((tiles, NORMALISED_GELU) for tiles in (WIDE, MIDDLE, NARROW)),
        *((tiles, RESIDUAL) for tiles in RESIDUAL_TILES),
    ],
)
def test_machine_code_with_e4m3(
    tiles: LinearTiles, epilogue: int, fp8_operands: bool, fp8_output: bool
) -> None:
    fp8 = {"fp8_operands": fp8_operands, "fp8_output": fp8_output}
    code = machine_code(tiles.program(epilogue, torch.float16, 8, **fp8))
    assert code["spills"] == 0 and code["stack"] == 0
    assert code["waits"] == 2
    assert tiles.shared_bytes(**fp8) <= 227 * 1024


def test_folded_layer_norm_is_the_layer_norm() -> None:
    weight, bias = random(24, 40, seed=0).double(), random(24, seed=1).double()
    gain, offset = random(40, seed=2).double(), random(40, seed=3).double()
    x = random(9, 40, seed=4).double() * 3 + 5
    folded, constant = fold_layer_norm(weight, bias, gain, offset)
    deviation = x.var(1, correction=0, keepdim=True).add(EPS).sqrt()
    expected = F.layer_norm(x, (40,), gain, offset, EPS) @ weight.t() + bias
    torch.testing.assert_close(x @ folded.t() / deviation + constant, expected)


def test_gelu_is_the_erf_form() -> None:
    """The formula of linear_epilogue.cuh with the kernel's constants, in float64, against x Φ."""
    constants = dict(MIDDLE.program(NORMALISED_GELU, torch.float16).constants)
    limit, a, b, c = (constants[name] for name in ("GELU_LIMIT", "GELU_2", "GELU_1", "GELU_0"))
    x = torch.linspace(-30, 30, 2_000_001, dtype=torch.float64)
    t = (x * x).clamp(max=limit)
    ours = x / (1 + torch.exp2(((a * t + b) * t + c) * x))
    assert float((ours - F.gelu(x)).abs().max()) < 2.6e-5


def test_gelu_in_halves_is_gelu_to_fp16() -> None:
    """The formula of gelu_e4m3, each step rounded to fp16 and tanh off by another 2⁻¹¹."""
    constants = {
        name: torch.tensor(value & 0xFFFF, dtype=torch.int32).to(torch.int16).view(torch.float16)
        for name, value in GELU_HALVES.items()
    }
    limit, a, b, c = (constants[f"{name}_HALVES"].double() for name in GELU)
    exact = torch.linspace(-200, 200, 800_001, dtype=torch.float64)
    x = exact.half().clamp(min=-32).double()

    def half(values: torch.Tensor) -> torch.Tensor:
        return values.half().double()

    t = half(x * x).clamp(max=limit)
    argument = half(half(half(a * t + b) * t + c) * x)
    for off in (-(2.0**-11), 2.0**-11):
        tanh = half(argument.tanh() + off)
        ours = half(half(x * 0.5) * tanh + half(x * 0.5))
        error = (ours - F.gelu(exact)).abs() / (1 + exact.abs())
        assert float(error.max()) < 1.5e-3  # e4m3 keeps 1/16 of a value


def test_tiles_leave_no_multiprocessor_waiting() -> None:
    assert normalised_tiles(4096, 3840, 132) == WIDE  # five rounds: 640 of 660 tiles
    # MIDDLE would leave fewer waiting, but moves more through shared memory.
    assert normalised_tiles(4096, 5120, 132) == WIDE
    assert normalised_tiles(4096, 576, 132) == MIDDLE
    assert residual_tiles(4096, 1280, 132) == TALL  # one: 128 of 132
    assert residual_tiles(4096, 1024, 132) == TALL_NARROW
    assert residual_tiles(4096, 768, 132) == SHORT_WIDE
    assert residual_tiles(4096, 96, 132) is None


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("tiles", [WIDE, MIDDLE, NARROW, TALL])
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
    statistics = row_statistics(x, 1).float()
    out = torch.full((rows, columns), float("nan"), device=DEVICE, dtype=dtype)
    layer = Linear(x, folded.to(dtype), constant, out, statistics, gelu=gelu, eps=EPS)
    linear_layer(layer, tiles)
    normed = F.layer_norm(x.double(), (inner,), gain.double(), offset.double(), EPS)
    expected = normed @ weight.double().t() + bias.double()
    assert relative_error(out, F.gelu(expected) if gelu else expected) < TOLERANCE[dtype]


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("tiles", RESIDUAL_TILES)
@pytest.mark.parametrize(("rows", "inner"), [(4096, 1280), (9000, 320), (300, 264), (1, 8)])
def test_residual_linear(
    rows: int, inner: int, tiles: LinearTiles, in_place: bool, dtype: torch.dtype
) -> None:
    """(9000 rows are several tiles for each multiprocessor.)"""
    columns = 8 * tiles.columns
    a, x = random(rows, inner, seed=0).to(dtype), random(rows, columns, seed=1).to(dtype)
    weight = random(columns, inner, seed=2, scale=inner**-0.5).to(dtype)
    bias = random(columns, seed=3)
    expected = x.double() + a.double() @ weight.double().t() + bias.double()
    parts = columns // tiles.columns
    statistics = torch.full((parts, rows, 2), float("nan"), device=DEVICE)
    out = x if in_place else torch.full_like(x, float("nan"))
    linear_layer(Linear(a, weight, bias, out, statistics, x), tiles)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    # (of what is rounded to `out`)
    torch.testing.assert_close(
        statistics.double(), row_statistics(expected, parts), rtol=1e-5, atol=1e-3
    )


@pytest.mark.gpu
@NEEDS_HOPPER
def test_statistics_in_parts_are_merged_and_residual_rows_repeat() -> None:
    """The statistics that one layer writes normalise the next as LayerNorm does."""
    rows, channels = 512, 1280
    a = random(rows, 320, seed=0).half()
    x = (random(REPEATED_ROWS, channels, seed=1) * 2 + 3).half()
    weight, bias = random(channels, 320, seed=2, scale=0.05).half(), random(channels, seed=3)
    parts = statistics_parts(rows, channels, multiprocessors(DEVICE))
    assert parts > 1
    statistics = torch.empty(parts, rows, 2, device=DEVICE)
    out = torch.empty(rows, channels, device=DEVICE, dtype=torch.float16)
    linear_layer(Linear(a, weight, bias, out, statistics, x))
    expected = (
        x.double().repeat(rows // REPEATED_ROWS, 1)
        + a.double() @ weight.double().t()
        + bias.double()
    )
    assert relative_error(out, expected) < 1e-3

    following, zero = random(256, channels, seed=4, scale=channels**-0.5), torch.zeros(256)
    one, none = torch.ones(channels, device=DEVICE), torch.zeros(channels, device=DEVICE)
    folded, constant = fold_layer_norm(following, zero.to(DEVICE), one, none)
    normed = torch.empty(rows, 256, device=DEVICE, dtype=torch.float16)
    linear_layer(Linear(out, folded.half(), constant, normed, statistics, eps=EPS))
    expected = F.layer_norm(out.double(), (channels,), eps=EPS) @ following.double().t()
    assert relative_error(normed, expected) < 1e-3


def e4m3(matrix: torch.Tensor, group: int = QUANTISED_GROUP) -> torch.Tensor:
    return quantised_order(matrix, group).to(torch.float8_e4m3fn)


def test_quantised_order_is_what_a_thread_holds() -> None:
    """Thread t of a row's four has columns 2 t, 2 t + 1 of each 8, and writes them together."""
    order = quantised_order(torch.arange(64)[None])[0].tolist()
    assert order[:16] == [0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27]
    assert sorted(order) == list(range(64)) and order[32:40] == [32, 33, 40, 41, 48, 49, 56, 57]
    narrow = quantised_order(torch.arange(16)[None], 16)[0].tolist()
    assert narrow == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]


@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("fp8_output", [False, True])
@pytest.mark.parametrize("fp8_operands", [False, True])
@pytest.mark.parametrize("tiles", [WIDE, MIDDLE, NARROW])
@pytest.mark.parametrize(
    ("rows", "columns", "inner"),
    [(4096, 640, 1280), (300, 224, 288), (1, 32, 32)],
)
def test_normalised_linear_with_e4m3(
    rows: int, columns: int, inner: int, tiles: LinearTiles, fp8_operands: bool, fp8_output: bool
) -> None:
    """Against float64 of the very operands, rounded to e4m3 beforehand."""
    x = (random(rows, inner, seed=0) + random(inner, seed=1)).half()
    weight = random(columns, inner, seed=2, scale=inner**-0.5)
    bias, scale = random(columns, seed=3), random(columns, seed=4).abs() + 0.5
    statistics = row_statistics(x, 1).float()
    a, w, weight_scale = x, weight.half(), None
    if fp8_operands:
        a, w, weight_scale = e4m3(x), e4m3(16 * weight), scale / 16
    out = torch.full((rows, columns), float("nan"), device=DEVICE, dtype=torch.float16)
    quantised = out.to(torch.float8_e4m3fn)
    linear_layer(
        Linear(
            a, w, bias, None if fp8_output else out, statistics, gelu=True, eps=EPS,
            weight_scale=weight_scale,
            quantised=quantised if fp8_output else None,
            quantised_scale=10 * scale if fp8_output else None,
        ),
        tiles,
    )  # fmt: skip
    sums = a.double() @ w.double().t()
    if weight_scale is not None:
        sums *= weight_scale
    deviation = x.double().var(1, correction=0, keepdim=True).add(EPS).sqrt()
    expected = F.gelu(sums / deviation + bias.double())
    if fp8_output:
        assert_e4m3_of(quantised, 10 * scale.double() * expected, 2 * TOLERANCE[torch.float16])
    else:
        assert relative_error(out, expected) < TOLERANCE[torch.float16]


@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("fp8_output", [False, True])
@pytest.mark.parametrize("fp8_operands", [False, True])
@pytest.mark.parametrize("tiles", RESIDUAL_TILES)
@pytest.mark.parametrize(("rows", "inner"), [(4500, 1280), (300, 288), (1, 32)])
def test_residual_linear_with_e4m3(
    rows: int, inner: int, tiles: LinearTiles, fp8_operands: bool, fp8_output: bool
) -> None:
    columns = 8 * tiles.columns
    a, x = random(rows, inner, seed=0).half(), random(rows, columns, seed=1).half()
    weight = random(columns, inner, seed=2, scale=inner**-0.5)
    bias, scale = random(columns, seed=3), random(columns, seed=4).abs() + 0.5
    w, weight_scale = weight.half(), None
    if fp8_operands:
        a, w, weight_scale = e4m3(a), e4m3(16 * weight), scale / 16
    expected = a.double() @ w.double().t()
    if weight_scale is not None:
        expected *= weight_scale
    expected += x.double() + bias.double()
    parts = columns // tiles.columns
    statistics = torch.full((parts, rows, 2), float("nan"), device=DEVICE)
    quantised = torch.full((rows, columns), float("nan"), device=DEVICE).to(torch.float8_e4m3fn)
    linear_layer(
        Linear(
            a, w, bias, x, statistics, x,
            weight_scale=weight_scale,
            quantised=quantised if fp8_output else None,
            quantised_scale=10 * scale if fp8_output else None,
        ),
        tiles,
    )  # fmt: skip
    assert relative_error(x, expected) < TOLERANCE[torch.float16]
    # (sums of e4m3 products are kept to some 14 bits)
    torch.testing.assert_close(
        statistics.double(),
        row_statistics(expected, parts),
        rtol=1e-3 if fp8_operands else 1e-5,
        atol=1e-1 if fp8_operands else 1e-3,
    )
    if fp8_output:
        assert_e4m3_of(quantised, 10 * scale.double() * expected, 2 * TOLERANCE[torch.float16])


def test_unsupported_shapes_raise_one_line() -> None:
    def refused(
        columns: int, inner: int, tiles: LinearTiles, residual_rows: int | None, match: str
    ) -> None:
        x, out = torch.zeros(16, inner), torch.zeros(16, columns)
        weight, bias = torch.zeros(columns, inner), torch.zeros(columns)
        residual = None if residual_rows is None else torch.zeros(residual_rows, columns)
        layer = Linear(x, weight, bias, out, torch.zeros(1, 16, 2), residual)
        with pytest.raises(EngineError, match=match) as error:
            linear_layer(layer, tiles)
        assert "\n" not in str(error.value)

    refused(96, 64, TALL_NARROW, 16, "equal parts")
    refused(128, 64, TALL_NARROW, 8, "multiple of 64")
    refused(64, 60, NARROW, None, "multiples of 8")
    refused(60, 64, NARROW, None, "multiples of 8")

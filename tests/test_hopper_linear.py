"""The linear layers for Hopper: their machine code anywhere, their values on a Hopper GPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hopper_kernels import NEEDS_HOPPER, TYPES, machine_code
from kernel_references import TOLERANCE, random, relative_error
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
    Linear,
    LinearTiles,
    chain_tiles,
    fold_layer_norm,
    layers_schedule,
    linear_layer,
    linear_layers,
    normalised_tiles,
    residual_tiles,
    statistics_parts,
)
from samtrt.kernels.norm import row_statistics

EPS = 1e-6


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
        (MIDDLE, None),
        (NARROW, None),
    ],
)
def test_machine_code(tiles: LinearTiles, epilogue: int | None, dtype: torch.dtype) -> None:
    code = machine_code(tiles.program(epilogue, dtype, 8))
    assert code["spills"] == 0 and code["stack"] == 0
    # A few waits in the loop and after it: serialised products have one each.
    assert code["wgmma"] >= 5 * code["waits"]
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
    layer = Linear(x, folded.to(dtype), constant, out, statistics, gelu=gelu, eps=EPS)
    linear_layer(layer, tiles)
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
    linear_layer(Linear(a, weight, bias, out, statistics, x))
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
    linear_layer(Linear(a, weight, bias, out, statistics, x))
    expected = x.double().repeat(4, 1) + a.double() @ weight.double().t() + bias.double()
    assert relative_error(out, expected) < 1e-3

    following, zero = random(256, channels, seed=4, scale=channels**-0.5), torch.zeros(256)
    one, none = torch.ones(channels, device=DEVICE), torch.zeros(channels, device=DEVICE)
    folded, constant = fold_layer_norm(following, zero.to(DEVICE), one, none)
    normed = torch.empty(rows, 256, device=DEVICE, dtype=torch.float16)
    linear_layer(Linear(out, folded.half(), constant, normed, statistics, eps=EPS))
    expected = F.layer_norm(out.double(), (channels,), eps=EPS) @ following.double().t()
    assert relative_error(normed, expected) < 1e-3


@pytest.mark.parametrize(("rows", "channels"), [(4096, 1280), (300, 160), (4096, 768)])
def test_schedule_of_layers(rows: int, channels: int) -> None:
    """Every tile once, in the order of the layers; the busiest block close to the mean."""
    tiles = chain_tiles(channels)
    sizes = [(channels, channels), (4 * channels, channels), (channels, 4 * channels)]
    schedule = layers_schedule(rows, sizes, 132, tiles)
    expected = {
        (layer, row, column)
        for layer, (columns, _) in enumerate(sizes)
        for row in range(0, rows, tiles.block_rows)
        for column in range(0, columns, tiles.columns)
    }
    found = [tuple(unit[:3]) for block in schedule.tolist() for unit in block if unit[0] >= 0]
    assert len(found) == len(expected) and set(found) == expected
    layers = schedule[..., 0]
    after = layers[:, 1:]
    assert bool(((after >= layers[:, :-1]) | (after < 0)).all())
    if rows == 4096:
        steps = torch.tensor([inner // 64 for _, inner in sizes] + [0])  # the last for -1
        work = steps[layers.long()].sum(1)
        assert work.max() <= work.float().mean() + steps.max()


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize(("rows", "channels"), [(4096, 640), (1000, 320), (640, 256)])
def test_layers_in_one_launch(rows: int, channels: int, dtype: torch.dtype) -> None:
    """proj, lin1, lin2 and qkv as four launches: the same numbers."""
    hidden = 4 * channels
    attended, x = random(rows, channels, seed=0).to(dtype), random(rows, channels, seed=1).to(dtype)
    shapes = {
        "proj": (channels, channels),
        "lin1": (hidden, channels),
        "lin2": (channels, hidden),
        "qkv": (3 * channels, channels),
    }
    weights = {
        name: random(*shape, seed=i, scale=shape[1] ** -0.5).to(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }
    biases = {name: random(shape[0], seed=9) for name, shape in shapes.items()}
    tiles = chain_tiles(channels)
    parts = channels // tiles.columns

    def layers() -> list[Linear]:
        stream = x.clone()
        shared = torch.full((rows, hidden), float("nan"), device=DEVICE, dtype=dtype)
        between = torch.full((2, parts, rows, 2), float("nan"), device=DEVICE)
        qkv = shared[:, : 3 * channels]

        def layer(name: str, a: torch.Tensor, out: torch.Tensor, i: int, **options: Any) -> Linear:
            return Linear(a, weights[name], biases[name], out, between[i], **options)

        return [
            layer("proj", attended, stream, 0, residual=stream),
            layer("lin1", stream, shared, 0, gelu=True, eps=EPS),
            layer("lin2", shared, stream, 1, residual=stream),
            layer("qkv", stream, qkv, 1, eps=EPS),
        ]

    together, alone = layers(), layers()
    schedule = layers_schedule(rows, list(shapes.values()), 132, tiles).to(DEVICE)
    done = torch.zeros(4, -(-rows // tiles.block_rows), dtype=torch.int32, device=DEVICE)
    linear_layers(together, schedule, done, tiles)
    for one in alone:
        linear_layer(one, tiles)
    for i in (2, 3):  # the stream and qkv
        assert torch.equal(together[i].out, alone[i].out)


def test_unsupported_shapes_raise_one_line() -> None:
    def refused(columns: int, inner: int, tiles: LinearTiles, residual: bool, match: str) -> None:
        x, out = torch.zeros(16, inner), torch.zeros(16, columns)
        weight, bias = torch.zeros(columns, inner), torch.zeros(columns)
        statistics = torch.zeros(1, 16, 2)
        layer = Linear(x, weight, bias, out, statistics, out if residual else None)
        with pytest.raises(EngineError, match=match) as error:
            linear_layer(layer, tiles)
        assert "\n" not in str(error.value)

    refused(96, 64, NARROW, True, "equal parts")
    refused(64, 60, NARROW, False, "multiples of 8")
    refused(60, 64, NARROW, False, "multiples of 8")

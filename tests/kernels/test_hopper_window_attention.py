"""Window attention for Hopper: machine code and schedule anywhere, its values on a Hopper GPU."""

from itertools import product

import pytest
import torch
from hopper_kernels import NEEDS_HOPPER, TYPES, machine_code
from kernel_references import (
    TOLERANCE,
    assert_e4m3_of,
    poisoned,
    random,
    relative_error,
    window_reference,
)
from triton_kernels import DEVICE

from samtrt.errors import EngineError
from samtrt.kernels.hopper.linear import ATTENDED_GROUP
from samtrt.kernels.hopper.window_attention import (
    supports,
    window_attention,
    window_attention_program,
    window_schedule,
    window_table,
)


def attend(
    qkv: torch.Tensor,
    rel_pos: list[torch.Tensor],
    window: int,
    heads: int,
    blocks: int,
    out_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's output and the reference in fp64, with a random qkv bias."""
    batch, height, width, channels = qkv.shape
    qkv_bias = random(channels, dtype=qkv.dtype, seed=1)
    table = window_table(*(r.float() for r in rel_pos), window).to(qkv.dtype)
    schedule = window_schedule(batch, height, width, window, heads, blocks).to(DEVICE)
    nothing = poisoned(batch, height, width, channels // 3, dtype=torch.float32)
    out = nothing.to(out_dtype)
    for _ in range(2):  # the second launch meets what the first left in shared memory
        out.copy_(nothing)
        window_attention(qkv, qkv_bias, table, schedule, out, window, heads)
    return out, window_reference(qkv, qkv_bias, *rel_pos, window, heads)


def error_of(
    qkv: torch.Tensor, rel_pos: list[torch.Tensor], window: int, heads: int, blocks: int = 132
) -> float:
    """The kernel's relative error."""
    return relative_error(*attend(qkv, rel_pos, window, heads, blocks, qkv.dtype))


@TYPES
@pytest.mark.parametrize(("head_dim", "window"), [(64, 14), (80, 14), (80, 7)])
def test_machine_code(head_dim: int, window: int, dtype: torch.dtype) -> None:
    code = machine_code(window_attention_program(head_dim, window, dtype))
    assert code["spills"] == 0 and code["stack"] == 0
    # Table, scores, weights · V; serialised products would have a wait each.
    assert code["wgmma"] > 20 and code["waits"] == 3


@pytest.mark.parametrize(
    ("batch", "height", "width", "window", "heads", "blocks"),
    [
        (1, 64, 64, 14, 16, 132),
        (1, 18, 16, 14, 2, 132),
        (3, 20, 33, 7, 2, 5),
        (1, 5, 5, 14, 2, 132),
    ],
)
def test_schedule_is_complete_and_even(
    batch: int, height: int, width: int, window: int, heads: int, blocks: int
) -> None:
    schedule = window_schedule(batch, height, width, window, heads, blocks)
    lists = [[tuple(unit) for unit in block if unit[3] >= 0] for block in schedule.tolist()]
    for block, units in zip(schedule.tolist(), lists, strict=True):
        assert all(unit[3] == -1 for unit in block[len(units) :])
    expected = product(
        range(0, width, window), range(0, height, window), range(batch), range(heads)
    )
    assert sorted(unit for units in lists for unit in units) == sorted(expected)

    def queries(unit: tuple[int, ...]) -> int:
        return min(window, width - unit[0]) * min(window, height - unit[1])

    loads = [sum(map(queries, units)) for units in lists]
    assert len(lists) == blocks or len(lists) == sum(map(len, lists))
    # No block has more than the mean and one whole window.
    assert max(loads) <= sum(loads) / len(loads) + window * window


def test_a_query_meets_ascending_table_rows() -> None:
    window, head_dim = 14, 80
    rel_pos = [random(2 * window - 1, head_dim, dtype=torch.float32, seed=s) for s in (0, 1)]
    table = window_table(*rel_pos, window) * head_dim**-0.5
    for half, rows in enumerate(rel_pos):
        for query in range(window):
            first = 2 * window * half + window - 1 - query
            distances = query - torch.arange(window) + window - 1
            torch.testing.assert_close(table[first : first + window], rows[distances])


def test_what_has_no_kernel_raises() -> None:
    assert supports(64, 14) and supports(80, 6)
    for head_dim, window in ((80, 5), (80, 15), (16, 14), (96, 14)):
        assert not supports(head_dim, window)
        with pytest.raises(EngineError, match="no kernel"):
            window_attention_program(head_dim, window, torch.float16)
        with pytest.raises(EngineError, match="no kernel"):
            window_table(torch.zeros(27, head_dim), torch.zeros(27, head_dim), window)


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize(
    ("batch", "height", "width", "window", "heads", "head_dim"),
    [
        (1, 64, 64, 14, 16, 80),  # ViT-H
        (2, 64, 64, 14, 12, 64),  # ViT-B
        (1, 14, 28, 14, 2, 80),  # no padding
        (1, 16, 16, 14, 2, 80),  # last windows almost wholly outside
        (3, 20, 33, 14, 1, 64),
        (1, 5, 9, 14, 2, 80),  # one window, larger than the grid
        (2, 25, 23, 7, 3, 80),
        (1, 40, 40, 13, 2, 64),
        (1, 20, 20, 6, 1, 80),
    ],
)
@pytest.mark.parametrize("blocks", [132, 3])
def test_window_attention(
    batch: int,
    height: int,
    width: int,
    window: int,
    heads: int,
    head_dim: int,
    blocks: int,
    dtype: torch.dtype,
) -> None:
    qkv = random(batch, height, width, 3 * heads * head_dim, dtype=dtype, seed=0)
    rel_pos = [random(2 * window - 1, head_dim, dtype=dtype, seed=s, scale=0.3) for s in (2, 3)]
    assert error_of(qkv, rel_pos, window, heads, blocks) < 2 * TOLERANCE[dtype]
    if dtype == torch.float16:
        qkv[..., 2 * heads * head_dim :] *= 32
        out, expected = attend(qkv, rel_pos, window, heads, blocks, torch.float8_e4m3fn)
        assert_e4m3_of(
            out.flatten(0, 2), expected.flatten(0, 2), 2 * TOLERANCE[dtype], ATTENDED_GROUP
        )


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
def test_scores_beyond_half_precision(dtype: torch.dtype) -> None:
    """Scores of some thousands: one key takes all the weight."""
    window, heads, head_dim = 14, 2, 80
    qkv = random(1, 30, 30, 3 * heads * head_dim, dtype=dtype, seed=0, scale=20.0)
    rel_pos = [torch.zeros(2 * window - 1, head_dim, dtype=dtype, device=DEVICE)] * 2
    assert error_of(qkv, rel_pos, window, heads) < 2 * TOLERANCE[dtype]


@pytest.mark.gpu
@NEEDS_HOPPER
def test_tokens_may_lie_apart() -> None:
    """qkv as the first columns of a wider matrix."""
    window, heads, head_dim, dtype = 14, 2, 80, torch.float16
    wide = random(2, 16, 20, 3 * heads * head_dim + 160, dtype=dtype, seed=0)
    rel_pos = [random(2 * window - 1, head_dim, dtype=dtype, seed=s, scale=0.3) for s in (2, 3)]
    qkv = wide[..., : 3 * heads * head_dim]
    assert error_of(qkv, rel_pos, window, heads) < 2 * TOLERANCE[dtype]

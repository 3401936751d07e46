"""Global attention for Hopper: its machine code anywhere, its values on a Hopper GPU."""

import pytest
import torch
from hopper_kernels import NEEDS_HOPPER, TYPES, machine_code
from kernel_references import (
    TOLERANCE,
    assert_e4m3_of,
    attention_reference,
    poisoned,
    random,
    relative_error,
)
from triton_kernels import DEVICE

from samtrt.errors import EngineError
from samtrt.kernels.hopper import global_attention as module
from samtrt.kernels.hopper.global_attention import (
    CONSUMERS,
    chunk_rows,
    global_attention,
    global_attention_program,
    shared_bytes,
    supports,
)
from samtrt.kernels.hopper.linear import ATTENDED_GROUP


def attend(
    qkv: torch.Tensor,
    tables: list[torch.Tensor],
    heads: int,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's output and the reference in fp64, from the same tables of √D · rel_pos."""
    batch, height, width, channels = qkv.shape
    nothing = poisoned(batch, height, width, channels // 3, dtype=torch.float32)
    out = nothing.to(out_dtype or qkv.dtype)
    for _ in range(2):  # the second launch meets what the first left in shared memory
        out.copy_(nothing)
        global_attention(qkv, tables[0], tables[1], out, heads)
    rel_pos = [table.double() * table.shape[1] ** -0.5 for table in tables]
    return out, attention_reference(qkv, rel_pos[0], rel_pos[1], heads)


@TYPES
@pytest.mark.parametrize("head_dim", [64, 80])
def test_machine_code(head_dim: int, dtype: torch.dtype) -> None:
    code = machine_code(global_attention_program(head_dim, dtype))
    assert code["spills"] == 0 and code["stack"] == 0
    # R_w, R_h, a tile's products, the last one's; serialised products would have a wait each.
    assert code["wgmma"] == 4 * (head_dim // 16) + 4 and code["waits"] == 4
    assert shared_bytes(head_dim) <= 227 * 1024


@pytest.mark.parametrize(
    ("heads", "blocks", "rows"),
    [(16, 132, 8), (32, 132, 16), (64, 132, 32), (128, 132, 64), (1, 132, 1), (16, 1, 64)],
)
def test_rows_of_a_chunk(heads: int, blocks: int, rows: int) -> None:
    """Of grids of 64 rows; 16 heads are an image's of ViT-H."""
    assert chunk_rows(64, heads, blocks) == rows


@pytest.mark.parametrize("height", [1, 2, 13, 60, 64])
@pytest.mark.parametrize("heads", [1, 12, 31, 100])
@pytest.mark.parametrize("blocks", [1, 78, 132])
def test_no_other_chunks_take_fewer_rounds(height: int, heads: int, blocks: int) -> None:
    def rounds(rows: int) -> int:
        sizes = [min(rows, height - y) for y in range(0, height, rows)] * heads
        return -(-len(sizes) // blocks) * -(-max(sizes) // CONSUMERS)

    chosen = chunk_rows(height, heads, blocks)
    assert rounds(chosen) == min(rounds(rows) for rows in range(1, height + 1))


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize(
    ("batch", "height", "width", "heads", "head_dim"),
    [
        (1, 64, 64, 16, 80),  # ViT-H
        (2, 64, 64, 12, 64),  # ViT-B
        (3, 4, 64, 1, 80),
        (2, 13, 40, 7, 80),  # tiles that do not fill the ring
        (1, 12, 5, 2, 80),  # rows of 5 tokens and padding
        (2, 32, 33, 3, 64),
        (1, 60, 1, 1, 64),
    ],
)
def test_global_attention(
    batch: int, height: int, width: int, heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    qkv = random(batch, height, width, 3 * heads * head_dim, dtype=dtype, seed=0)
    tables = [
        random(2 * side - 1, head_dim, dtype=dtype, seed=side + axis, scale=2.0)
        for axis, side in enumerate((height, width))
    ]
    out, reference = attend(qkv, tables, heads)
    assert relative_error(out, reference) < 2 * TOLERANCE[dtype]
    if dtype == torch.float16:
        qkv[..., 2 * heads * head_dim :] *= 32
        out, reference = attend(qkv, tables, heads, torch.float8_e4m3fn)
        assert_e4m3_of(
            out.flatten(0, 2), reference.flatten(0, 2), 2 * TOLERANCE[dtype], ATTENDED_GROUP
        )


@TYPES
@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("direction", [1, -1])
def test_scores_that_grow_or_fall_from_row_to_row(direction: int, dtype: torch.dtype) -> None:
    """Each key row outweighs those before by more than fp16's range, or the first all others."""
    head_dim, side = 80, 64
    qkv = random(1, side, side, 3 * head_dim, dtype=dtype, seed=0)
    tables = [torch.zeros(2 * side - 1, head_dim, dtype=dtype, device=DEVICE) for _ in range(2)]
    # The bias of query and key row depends on their distance alone: 16 · distance.
    qkv[..., 0] = 1
    distance = torch.arange(1 - side, side, device=DEVICE)
    tables[0][:, 0] = 16 * direction * distance * head_dim**0.5
    out, reference = attend(qkv, tables, 1)
    assert relative_error(out, reference) < 2 * TOLERANCE[dtype]


@pytest.mark.gpu
@NEEDS_HOPPER
@pytest.mark.parametrize("blocks", [132, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize(
    ("batch", "height", "width", "heads", "head_dim"), [(2, 16, 33, 3, 80), (2, 23, 64, 2, 64)]
)
def test_chunks_of_any_size(
    batch: int,
    height: int,
    width: int,
    heads: int,
    head_dim: int,
    rows: int,
    blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several a block, warpgroups without a row, heads whose last chunk is short."""
    monkeypatch.setattr(module, "chunk_rows", lambda *sizes: rows)
    monkeypatch.setattr(module, "multiprocessors", lambda device: blocks)
    qkv = random(batch, height, width, 3 * heads * head_dim, dtype=torch.float16, seed=0)
    tables = [
        random(2 * side - 1, head_dim, dtype=torch.float16, seed=side, scale=2.0)
        for side in (height, width)
    ]
    out, reference = attend(qkv, tables, heads)
    assert relative_error(out, reference) < 2 * TOLERANCE[torch.float16]


@pytest.mark.gpu
@NEEDS_HOPPER
def test_tokens_may_lie_apart() -> None:
    """qkv as the first columns of a wider matrix."""
    wide = random(2, 8, 64, 3 * 2 * 80 + 160, dtype=torch.float16, seed=0)
    tables = [random(n, 80, dtype=torch.float16, seed=n, scale=2.0) for n in (15, 127)]
    out, reference = attend(wide[..., : 3 * 2 * 80], tables, 2)
    assert relative_error(out, reference) < 2 * TOLERANCE[torch.float16]


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    assert supports(64, 64, 80) and supports(1, 1, 64)
    for height, width, head_dim in ((65, 64, 80), (64, 65, 80), (0, 64, 80), (64, 64, 96)):
        assert not supports(height, width, head_dim)
        qkv = torch.zeros(1, height, width, 3 * head_dim)
        with pytest.raises(EngineError, match=f"{height} × {width} tokens") as error:
            global_attention(qkv, qkv, qkv, qkv, 1)
        assert "\n" not in str(error.value)

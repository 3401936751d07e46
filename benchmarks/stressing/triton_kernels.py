"""Cases of Triton's kernels with asynchronous copies, at the sizes of ViT-B and ViT-H.

Few sizes, since each is compiled for some seconds.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stressing.kernels import LIMITS, Maker
from benchmarks.stressing.watch import Case
from benchmarks.tuning.references import attention_reference, window_reference
from samtrt.encoders.cuda.portable import HOPPER, PORTABLE
from samtrt.kernels.triton import gemm, global_attention, window_attention

HEADS = ((12, 64), (16, 80))  # ViT-B, ViT-H: how many, and of how many columns
SIDE, WINDOW = 64, 14
DTYPE = torch.float16
LIMIT = 2 * LIMITS[DTYPE]


def product(maker: Maker, heads: int, head_dim: int) -> Case:
    channels = heads * head_dim
    a = maker.normal(SIDE * SIDE, channels, dtype=DTYPE)
    weight = maker.normal(4 * channels, channels, scale=channels**-0.5, dtype=DTYPE)
    bias = maker.normal(4 * channels)
    tiles = HOPPER.gemm or gemm.GemmTiles()
    expected = F.gelu(a.double() @ weight.double().t() + bias.double())

    def launch(outputs: Sequence[Tensor]) -> None:
        gemm.linear_gelu(a, weight, bias, outputs[0], tiles)

    out = maker.poisoned(SIDE * SIDE, 4 * channels, dtype=DTYPE)
    return Case(f"triton linear_gelu {channels}", [out], launch, [expected], LIMIT)


def windows(maker: Maker, heads: int, head_dim: int) -> Case:
    channels = heads * head_dim
    qkv = maker.normal(1, SIDE, SIDE, 3 * channels, dtype=DTYPE)
    bias = maker.normal(3 * channels, dtype=DTYPE)
    rel_pos = [maker.normal(2 * WINDOW - 1, head_dim, scale=0.3, dtype=DTYPE) for _ in range(2)]
    table = window_attention.window_table(*(r.float() for r in rel_pos), WINDOW).to(DTYPE)
    places = window_attention.window_places(WINDOW).to(maker.device, DTYPE)

    def launch(outputs: Sequence[Tensor]) -> None:
        window_attention.window_attention(
            qkv, bias, table, places, outputs[0], WINDOW, heads, HOPPER.window
        )

    expected = window_reference(qkv, bias, *rel_pos, WINDOW, heads)
    out = maker.poisoned(1, SIDE, SIDE, channels, dtype=DTYPE)
    return Case(f"triton window {heads}x{head_dim}", [out], launch, [expected], LIMIT)


def whole_grid(maker: Maker, heads: int, head_dim: int, tma: bool) -> Case:
    """By the copy engine (Hopper and newer) or by the threads' asynchronous copies."""
    channels, tokens = heads * head_dim, SIDE * SIDE
    qkv = maker.normal(1, SIDE, SIDE, 3 * channels, dtype=DTYPE)
    rel_pos = [maker.normal(2 * SIDE - 1, head_dim, scale=0.3, dtype=DTYPE) for _ in range(2)]
    tables = [(r.float() * head_dim**0.5).to(DTYPE) for r in rel_pos]
    rel_h = maker.poisoned(1, heads, SIDE, tokens)
    block = global_attention.row_block(SIDE)
    rel_w = maker.poisoned(1, heads, tokens, block, dtype=DTYPE)
    tiles = (HOPPER if tma else PORTABLE).globals

    def launch(outputs: Sequence[Tensor]) -> None:
        global_attention.relative_positions(qkv, *tables, rel_h, rel_w, heads)
        global_attention.global_attention(qkv, rel_h, rel_w, outputs[0], heads, tiles)

    expected = attention_reference(qkv, *rel_pos, heads)
    out = maker.poisoned(1, SIDE, SIDE, channels, dtype=DTYPE)
    name = f"triton global {heads}x{head_dim}{' by the copy engine' * tma}"
    return Case(name, [out], launch, [expected], LIMIT)


def kinds() -> list[Callable[[Maker], Case]]:
    """Every case there is."""
    return [
        make
        for heads, head_dim in HEADS
        for make in (
            lambda maker, h=heads, d=head_dim: product(maker, h, d),
            lambda maker, h=heads, d=head_dim: windows(maker, h, d),
            lambda maker, h=heads, d=head_dim: whole_grid(maker, h, d, tma=True),
            lambda maker, h=heads, d=head_dim: whole_grid(maker, h, d, tma=False),
        )
    ]

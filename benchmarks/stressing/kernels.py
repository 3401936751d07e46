"""Random cases of the kernels for Hopper: sizes, tiles, numbers of blocks, orders of work."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stressing.watch import E4M3, Case
from benchmarks.tuning.references import attention_reference, row_statistics, window_reference
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper import global_attention, linear, window_attention
from samtrt.kernels.hopper.linear import Linear

# Relative L2 against float64: a few roundings of the type's unit, 2^-11 and 2^-8.
LIMITS = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
WINDOWS = (6, 7, 13, 14)
PARTS = (1, 4, 8)  # of the statistics that are read
NORMALISED_TILES = (linear.WIDE, linear.MIDDLE, linear.NARROW, linear.TALL)
EPS = 1e-6
Kind = Callable[["Maker"], Case]


@contextmanager
def replaced(module: Any, **functions: Any) -> Iterator[None]:
    """Meanwhile the module has other functions under these names."""
    before = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


class Maker:
    """Makes random cases, always the same from one seed."""

    def __init__(self, seed: int, device: str | torch.device = "cuda") -> None:
        self.choice = random.Random(seed)
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def cases(self, count: int, kinds: Sequence[Kind] | None = None) -> Iterator[Case]:
        """All kinds in turn."""
        for index in range(count):
            yield (kinds or KINDS)[index % len(kinds or KINDS)](self)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, device=self.device, generator=self.generator) * scale
        return values.to(dtype or torch.float32)

    def poisoned(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, float("nan"), device=self.device).to(dtype)

    def size(self, largest: int) -> int:
        """Small ones as often as large ones."""
        return min(largest, int(largest ** self.choice.random()) + self.choice.randint(0, 7))

    def dtype(self) -> torch.dtype:
        return self.choice.choice((torch.float16, torch.bfloat16))

    def fp8(self, dtype: torch.dtype) -> tuple[bool, bool]:
        """Whether a layer's operands are e4m3, and whether its output is."""
        is_fp16 = dtype == torch.float16
        return is_fp16 and self.choice.random() < 0.6, is_fp16 and self.choice.random() < 0.6

    def e4m3(self, values: Tensor, scale: float = 1.0) -> Tensor:
        return linear.quantised_order(values * scale).clamp(-448, 448).to(E4M3)

    def blocks(self) -> int:
        """As many as run at once, or fewer, so that each has more to do."""
        processors = multiprocessors(self.device)
        return self.choice.choice((processors, processors, max(1, processors // 4), 3, 1))


def normalised_linear(maker: Maker) -> Case:
    choice, dtype = maker.choice, maker.dtype()
    fp8_operands, fp8_output = maker.fp8(dtype)
    multiple = linear.QUANTISED_GROUP if fp8_operands or fp8_output else 8
    tiles = dataclasses.replace(
        choice.choice(NORMALISED_TILES[:3] if fp8_output else NORMALISED_TILES),
        group=choice.choice((1, 2, 4, 8, 16)),
    )
    parts, gelu, blocks = choice.choice(PARTS), choice.random() < 0.5, maker.blocks()
    rows, columns = maker.size(4096), multiple * maker.size(3200 // multiple)
    inner = multiple * parts * choice.randint(1, max(1, 1280 // multiple // parts))
    if blocks < 8:
        rows, columns = min(rows, 300), min(columns, 384)
    x = (maker.normal(rows, inner) + maker.normal(inner)).to(dtype)
    weight, bias = maker.normal(columns, inner, scale=inner**-0.5), maker.normal(columns)
    gain, offset = maker.normal(inner), maker.normal(inner)
    folded, constant = linear.fold_layer_norm(weight, bias, gain, offset)
    statistics = row_statistics(x, parts).float().contiguous()
    a, folded, weight_scale = (
        (maker.e4m3(x), maker.e4m3(folded, 8.0), torch.full((columns,), 1 / 8, device=maker.device))
        if fp8_operands
        else (x, folded.to(dtype), None)
    )
    scale = torch.full((columns,), 8.0, device=maker.device) if fp8_output else None

    def launch(outputs: Sequence[Tensor]) -> None:
        layer = Linear(
            a, folded, constant, None if fp8_output else outputs[0], statistics,
            gelu=gelu, eps=EPS, weight_scale=weight_scale,
            quantised=outputs[0] if fp8_output else None, quantised_scale=scale,
        )  # fmt: skip
        with replaced(linear, multiprocessors=lambda device: blocks):
            linear.linear_layer(layer, tiles)

    # (of the weights as they are after their rounding)
    deviation = x.double().var(1, correction=0, keepdim=True).add(EPS).sqrt()
    expected = a.double() @ folded.double().t() * (1 / 8 if fp8_operands else 1)
    expected = expected / deviation + constant.double()
    expected = F.gelu(expected) if gelu else expected
    if fp8_output:
        expected = linear.quantised_order(8 * expected).clamp(-448, 448)
    how = f"{' gelu' * gelu}{' e4m3' * fp8_operands}{' to e4m3' * fp8_output}"
    name = f"linear{how} {rows}x{columns}x{inner} {dtype} {tiles} {blocks} blocks"
    out = maker.poisoned(rows, columns, dtype=E4M3 if fp8_output else dtype)
    return Case(name, [out], launch, [expected], 2 * LIMITS[dtype])


def residual_linear(maker: Maker) -> Case:
    choice, dtype = maker.choice, maker.dtype()
    fp8_operands, fp8_output = maker.fp8(dtype)
    multiple = linear.QUANTISED_GROUP if fp8_operands or fp8_output else 8
    tiles = dataclasses.replace(
        choice.choice(linear.RESIDUAL_TILES), group=choice.choice((1, 2, 4, 8, 16))
    )
    parts, blocks = choice.randint(1, 8), maker.blocks()
    rows, columns = maker.size(9000), parts * tiles.columns
    inner = multiple * maker.size(1600 // multiple)
    if blocks < 8:
        rows, inner = min(rows, 300), min(inner, 640)
    repeats = rows % linear.REPEATED_ROWS == 0 and choice.random() < 0.5
    in_place = not repeats and choice.random() < 0.5
    a = maker.normal(rows, inner).to(dtype)
    weight, bias = maker.normal(columns, inner, scale=inner**-0.5), maker.normal(columns)
    weight_scale = scale = None
    if fp8_operands:
        a, weight = maker.e4m3(a), maker.e4m3(weight, 8.0)
        weight_scale = torch.full((columns,), 1 / 8, device=maker.device)
    else:
        weight = weight.to(dtype)
    if fp8_output:
        scale = torch.full((columns,), 8.0, device=maker.device)
    residual = maker.normal(linear.REPEATED_ROWS if repeats else rows, columns).to(dtype)

    def launch(outputs: Sequence[Tensor]) -> None:
        out, statistics, *quantised = outputs
        layer = Linear(
            a, weight, bias, out, statistics, out if in_place else residual,
            weight_scale=weight_scale,
            quantised=quantised[0] if quantised else None, quantised_scale=scale,
        )  # fmt: skip
        with replaced(linear, multiprocessors=lambda device: blocks):
            linear.linear_layer(layer, tiles)

    added = residual.double().repeat(rows // linear.REPEATED_ROWS, 1) if repeats else residual
    product = a.double() @ weight.double().t() * (1 / 8 if fp8_operands else 1)
    expected = added.double() + product + bias.double()
    how = "in place" if in_place else "repeated" if repeats else ""
    how += f"{' e4m3' * fp8_operands}{' and to e4m3' * fp8_output}"
    name = f"residual {rows}x{columns}x{inner} {dtype} {tiles} {blocks} blocks {how}"
    out = residual if in_place else maker.poisoned(rows, columns, dtype=dtype)
    return Case(
        name,
        [out, maker.poisoned(parts, rows, 2)]
        + [maker.poisoned(rows, columns, dtype=E4M3)] * fp8_output,
        launch,
        [expected, row_statistics(expected, parts)]
        + [linear.quantised_order(8 * expected).clamp(-448, 448)] * fp8_output,
        LIMITS[dtype],
    )


def windows(maker: Maker) -> Case:
    choice, dtype, blocks = maker.choice, maker.dtype(), maker.blocks()
    window, head_dim = choice.choice(WINDOWS), choice.choice(window_attention.HEAD_DIMS)
    batch, heads = choice.randint(1, 3), choice.randint(1, 6)
    height, width = (maker.size(48 if blocks > 8 else 20) for _ in range(2))
    qkv = maker.normal(batch, height, width, 3 * heads * head_dim).to(dtype)
    bias = maker.normal(3 * heads * head_dim).to(dtype)
    rel_pos = [maker.normal(2 * window - 1, head_dim, scale=0.3).to(dtype) for _ in range(2)]
    table = window_attention.window_table(*(r.float() for r in rel_pos), window).to(dtype)
    schedule = window_attention.window_schedule(batch, height, width, window, heads, blocks)
    schedule = shuffled(schedule, choice).to(maker.device)

    def launch(outputs: Sequence[Tensor]) -> None:
        window_attention.window_attention(qkv, bias, table, schedule, outputs[0], window, heads)

    rounded = [table[: 2 * window - 1].flip(0), table[2 * window : 4 * window - 1].flip(0)]
    exact = [part.double() * head_dim**-0.5 for part in rounded]
    expected = window_reference(qkv, bias, *exact, window, heads)
    name = f"window {window} {batch}x{height}x{width} {heads}x{head_dim} {dtype} {blocks} blocks"
    return attention_case(maker, name, launch, expected, dtype)


def attention_case(
    maker: Maker,
    name: str,
    launch: Callable[[Sequence[Tensor]], object],
    expected: Tensor,
    dtype: torch.dtype,
) -> Case:
    """Of the type of its input, or of e4m3."""
    if maker.fp8(dtype)[1]:
        rows = expected.flatten(0, 2)
        expected = linear.quantised_order(rows, linear.ATTENDED_GROUP).view(expected.shape)
        name, dtype = f"{name} to e4m3", E4M3
    out = maker.poisoned(*expected.shape, dtype=dtype)
    return Case(name, [out], launch, [expected], 2 * LIMITS.get(dtype, 1e-3))


def shuffled(schedule: Tensor, choice: random.Random) -> Tensor:
    """Each block's units in another order; the ends of the lists stay ends."""
    lists = schedule.tolist()
    for block, units in enumerate(lists):
        real = [unit for unit in units if unit[3] >= 0]
        choice.shuffle(real)
        lists[block] = real + units[len(real) :]
    return torch.tensor(lists, dtype=schedule.dtype)


def whole_grid(maker: Maker) -> Case:
    choice, dtype, blocks = maker.choice, maker.dtype(), maker.blocks()
    head_dim = choice.choice(global_attention.HEAD_DIMS)
    batch, heads = choice.randint(1, 3), choice.randint(1, 4)
    height, width = (min(64, maker.size(64 if blocks > 8 else 20)) for _ in range(2))
    rows = choice.randint(1, height)
    qkv = maker.normal(batch, height, width, 3 * heads * head_dim).to(dtype)
    tables = [maker.normal(2 * side - 1, head_dim, scale=2.0).to(dtype) for side in (height, width)]

    def launch(outputs: Sequence[Tensor]) -> None:
        with replaced(
            global_attention,
            chunk_rows=lambda *sizes: rows,
            multiprocessors=lambda device: blocks,
        ):
            global_attention.global_attention(qkv, *tables, outputs[0], heads)

    exact = [table.double() * head_dim**-0.5 for table in tables]
    expected = attention_reference(qkv, *exact, heads)
    name = (
        f"global {batch}x{height}x{width} {heads}x{head_dim} {dtype} {blocks} blocks, "
        f"chunks of {rows} rows"
    )
    return attention_case(maker, name, launch, expected, dtype)


KINDS: tuple[Kind, ...] = (residual_linear, normalised_linear, windows, whole_grid)

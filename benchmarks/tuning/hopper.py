"""Launch configurations of the CUDA C++ kernels, and cuBLASLt beside them: ``HopperTrunk``."""

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import event_milliseconds
from benchmarks.tuning.references import attention_reference, row_statistics, window_reference
from benchmarks.tuning.tuner import BUFFERS, Tuner
from samtrt.checkpoints.config import EncoderConfig
from samtrt.kernels.cublaslt import Product, make_workspace
from samtrt.kernels.device import multiprocessors
from samtrt.kernels.hopper import global_attention, linear, window_attention
from samtrt.kernels.hopper.compiler import Program
from samtrt.kernels.hopper.linear import Linear, LinearTiles

H200_MULTIPROCESSORS = 132
EPILOGUES = {
    "qkv": linear.NORMALISED,
    "lin1": linear.NORMALISED_GELU,
    "proj": linear.RESIDUAL,
    "lin2": linear.RESIDUAL,
}
NORMALISED_TILES = {
    "wide": linear.WIDE,
    "middle": linear.MIDDLE,
    "narrow": linear.NARROW,
    "wide, groups of 4": dataclasses.replace(linear.WIDE, group=4),
    "wide, groups of 16": dataclasses.replace(linear.WIDE, group=16),
    "middle, groups of 4": dataclasses.replace(linear.MIDDLE, group=4),
    "middle, groups of 16": dataclasses.replace(linear.MIDDLE, group=16),
}
RESIDUAL_TILES = {
    "tall": linear.TALL,
    "tall, narrow": linear.TALL_NARROW,
    "tall, groups of 4": dataclasses.replace(linear.TALL, group=4),
    "tall, groups of 16": dataclasses.replace(linear.TALL, group=16),
    "short, wide": linear.SHORT_WIDE,
    "short": linear.SHORT,
    "short, narrow": linear.SHORT_NARROW,
}


def sizes(config: EncoderConfig, name: str) -> tuple[int, int]:
    """Output and input channels of a block's linear layer."""
    c, hidden = config.embed_dim, config.mlp_dim
    return {"qkv": (3 * c, c), "proj": (c, c), "lin1": (hidden, c), "lin2": (c, hidden)}[name]


def linear_tiles(config: EncoderConfig, name: str) -> dict[str, LinearTiles]:
    """What fits that layer."""
    if EPILOGUES[name] != linear.RESIDUAL:
        return NORMALISED_TILES
    columns, _ = sizes(config, name)
    return {k: tiles for k, tiles in RESIDUAL_TILES.items() if columns % tiles.columns == 0}


def programs(config: EncoderConfig, batch: int, dtype: torch.dtype) -> Iterator[Program]:
    """Everything that the sections launch, to be compiled in advance, without a GPU."""
    rows = batch * config.grid_size**2
    parts = linear.statistics_parts(rows, config.embed_dim, H200_MULTIPROCESSORS)
    for name, epilogue in EPILOGUES.items():
        for tiles in linear_tiles(config, name).values():
            yield tiles.program(epilogue, dtype, 1 if epilogue == linear.RESIDUAL else parts)
    yield window_attention.window_attention_program(config.head_dim, config.window_size, dtype)
    yield global_attention.global_attention_program(config.head_dim, dtype)


def tune_linear(tuner: Tuner) -> None:
    for name, epilogue in EPILOGUES.items():
        n, k = sizes(tuner.config, name)
        # Rows whose mean is not zero.
        a = [tuner.random(tuner.tokens, k) + tuner.random(k) + 0.5 for _ in range(BUFFERS)]
        weight = [tuner.random(n, k, scale=k**-0.5) for _ in range(BUFFERS)]
        bias = tuner.random(n, dtype=torch.float32)
        _cublaslt(tuner, name, a, weight, bias if epilogue != linear.RESIDUAL else None)
        if epilogue == linear.RESIDUAL:
            _tune_residual(tuner, name, a, weight, bias)
        else:
            _tune_normalised(tuner, name, a, weight, bias)


def _cublaslt(
    tuner: Tuner, name: str, a: list[Tensor], weight: list[Tensor], bias: Tensor | None
) -> None:
    """The bare product, its bias or its residual with it, by the best algorithm of cuBLASLt."""
    n, k = sizes(tuner.config, name)
    half = None if bias is None else bias.to(tuner.dtype)
    out = [tuner.random(tuner.tokens, n) for _ in range(BUFFERS)]
    workspace = make_workspace(torch.device("cuda", 0))
    product = Product(tuner.tokens, n, k, tuner.dtype, half is not None, workspace)
    _take_fastest(product, a[0], weight, half, out[0])
    checks = []  # (an accumulated product cannot be poisoned: its output is its input)
    if half is not None:
        checks = [(out[0], a[0].double() @ weight[0].double().t() + half.double())]
    tuner.run(
        "hopper-linear",
        f"{name} cuBLASLt, best of {product.candidates}, product alone",
        lambda i: product(a[i], weight[i], half, out[i]),
        checks,
        flop=2.0 * tuner.tokens * n * k,
    )


def _take_fastest(
    product: Product, a: Tensor, weights: list[Tensor], bias: Tensor | None, out: Tensor
) -> None:
    """By time; the weights in turn, so that they come from memory as in the network."""
    times = []
    for choice in range(product.candidates):
        product.choice = choice
        calls = [lambda weight=weight: product(a, weight, bias, out) for weight in weights]
        times.append(sum(event_milliseconds(calls, repeats=24, warmup=1)))
    product.choice = times.index(min(times))


def _tune_normalised(
    tuner: Tuner, name: str, x: list[Tensor], weight: list[Tensor], bias: Tensor
) -> None:
    config, gelu = tuner.config, EPILOGUES[name] == linear.NORMALISED_GELU
    n, k = sizes(config, name)
    gain, offset = (tuner.random(k, dtype=torch.float32) for _ in range(2))
    processors = multiprocessors(tuner.device)
    parts = linear.statistics_parts(tuner.tokens, config.embed_dim, processors)
    layers = []
    for each, matrix in zip(x, weight, strict=True):
        folded, constant = linear.fold_layer_norm(matrix.float(), bias, gain, offset)
        statistics = row_statistics(each, parts).float().contiguous()
        out = tuner.random(tuner.tokens, n)
        folded = folded.to(tuner.dtype)
        eps = config.layer_norm_eps
        layers.append(Linear(each, folded, constant, out, statistics, gelu=gelu, eps=eps))
    normed = F.layer_norm(x[0].double(), (k,), gain.double(), offset.double(), layers[0].eps)
    expected = normed @ weight[0].double().t() + bias.double()
    if gelu:
        expected = F.gelu(expected)
    for label, tiles in linear_tiles(config, name).items():
        tuner.run(
            "hopper-linear",
            f"{name} {label}",
            lambda i, tiles=tiles: linear.linear_layer(layers[i], tiles),
            [(layers[0].out, expected)],
            flop=2.0 * tuner.tokens * n * k,
        )


def _tune_residual(
    tuner: Tuner, name: str, a: list[Tensor], weight: list[Tensor], bias: Tensor
) -> None:
    n, k = sizes(tuner.config, name)
    residual = [tuner.random(tuner.tokens, n) for _ in range(BUFFERS)]
    out = [torch.empty_like(each) for each in residual]
    expected = residual[0].double() + a[0].double() @ weight[0].double().t() + bias.double()
    for label, tiles in linear_tiles(tuner.config, name).items():
        parts = n // tiles.columns
        statistics = torch.empty(parts, tuner.tokens, 2, device=tuner.device)
        layers = [
            Linear(a[i], weight[i], bias, out[i], statistics, residual[i]) for i in range(BUFFERS)
        ]
        tuner.run(
            "hopper-linear",
            f"{name} {label}",
            lambda i, layers=layers, tiles=tiles: linear.linear_layer(layers[i], tiles),
            # (statistics of the rounded sums; those of the exact ones differ by less than that)
            [(out[0], expected), (statistics, row_statistics(expected, parts))],
            flop=2.0 * tuner.tokens * n * k,
        )


def tune_window(tuner: Tuner) -> None:
    config, side = tuner.config, tuner.config.grid_size
    c, window, heads = config.embed_dim, config.window_size, config.num_heads
    qkv = [tuner.random(tuner.batch, side, side, 3 * c) for _ in range(BUFFERS)]
    bias = tuner.random(3 * c)
    rel_pos = [tuner.random(2 * window - 1, config.head_dim, scale=0.1) for _ in range(2)]
    table = window_attention.window_table(*(r.float() for r in rel_pos), window).to(tuner.dtype)
    out = tuner.random(tuner.batch, side, side, c)
    reference = window_reference(qkv[0], bias, *rel_pos, window, heads)
    blocks = multiprocessors(tuner.device)
    schedule = window_attention.window_schedule(tuner.batch, side, side, window, heads, blocks).to(
        tuner.device
    )
    tuner.run(
        "hopper-window",
        f"{blocks} blocks, {schedule.shape[1]} units at most",
        lambda i: window_attention.window_attention(
            qkv[i], bias, table, schedule, out, window, heads
        ),
        [(out, reference)],
        flop=4.0 * tuner.tokens * window**2 * c,
    )


def tune_global(tuner: Tuner) -> None:
    config, side = tuner.config, tuner.config.grid_size
    c, heads = config.embed_dim, config.num_heads
    qkv = [tuner.random(tuner.batch, side, side, 3 * c) for _ in range(BUFFERS)]
    rel_pos = [tuner.random(2 * side - 1, config.head_dim, scale=0.1) for _ in range(2)]
    tables = [(r.float() * config.head_dim**0.5).to(tuner.dtype) for r in rel_pos]
    out = tuner.random(tuner.batch, side, side, c)
    reference = attention_reference(qkv[0], *rel_pos, heads)
    rows = global_attention.chunk_rows(side, tuner.batch * heads, multiprocessors(tuner.device))
    tuner.run(
        "hopper-global",
        f"{rows} rows a chunk",
        lambda i: global_attention.global_attention(qkv[i], *tables, out, heads),
        [(out, reference)],
        flop=4.0 * tuner.tokens * side**2 * c,
    )


SECTIONS = {
    "hopper-linear": tune_linear,
    "hopper-window": tune_window,
    "hopper-global": tune_global,
}

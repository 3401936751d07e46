"""Checks and times the kernels' launch configurations at a model's shapes, on a GPU.

The fastest rows go into the table of ``samtrt.fused``; nothing is tuned when the encoder starts.

    python benchmarks/tune.py --model vit_h --output tune.json
"""

import argparse
import itertools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import graph_microseconds
from samtrt import config as sizes
from samtrt.kernels import gemm, global_attention, norm, window_attention
from samtrt.kernels.cublaslt import Product, make_workspace

BUFFERS = 4
SECTIONS = ("norm", "window", "global", "linear", "gelu", "neck")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("vit_b", "vit_l", "vit_h"), default="vit_h")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--shard", help="i/n: run each n-th configuration once, to fill the cache")
    return parser.parse_args()


class Tuner:
    """Runs configurations one by one: a wrong or failing one is reported, not timed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.config = getattr(sizes, arguments.model)()
        self.batch = arguments.batch_size
        self.dtype = torch.float16 if arguments.precision == "fp16" else torch.bfloat16
        self.tolerance = 1.5e-3 if arguments.precision == "fp16" else 1.2e-2
        self.shard = tuple(map(int, arguments.shard.split("/"))) if arguments.shard else None
        self.count = itertools.count()
        self.rows: list[dict[str, object]] = []

    def random(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None):
        return (torch.randn(*shape, device="cuda") * scale).to(dtype or self.dtype)

    def run(
        self,
        section: str,
        label: str,
        call: Callable[[int], None],
        output: Callable[[], torch.Tensor],
        reference: torch.Tensor | None,
        flop: float = 0.0,
        moved: float = 0.0,
    ) -> None:
        number = next(self.count)
        if self.shard:
            if number % self.shard[1] == self.shard[0]:
                try:
                    call(0)
                    torch.cuda.synchronize()
                except Exception as error:
                    print(section, label, repr(error)[:200])
            return
        row: dict[str, object] = {"section": section, "label": label}
        try:
            error = 0.0
            if reference is not None:
                output().fill_(float("nan"))
                call(0)
                torch.cuda.synchronize()
                difference = output().double() - reference
                error = float(difference.norm() / reference.norm())
            row["error"] = error
            if not error < self.tolerance:
                row["failure"] = "wrong"
            else:
                calls = [lambda i=i: call(i) for i in range(BUFFERS)]
                row["us"] = graph_microseconds(calls * 2)
        except Exception as problem:
            row["failure"] = repr(problem)[:160]
            traceback.print_exc(file=sys.stderr)
        self.rows.append(row)
        time = row.get("us")
        text = f"{section:8s} {label:46s} "
        if isinstance(time, float):
            text += f"{time:8.1f} us"
            if flop:
                text += f" {flop / time / 1e6:6.0f} TFLOP/s"
            if moved:
                text += f" {moved / time / 1e6:5.2f} TB/s"
            text += f"  err {row['error']:.1e}"
        else:
            text += f"FAILED {row['failure']} err {row.get('error')}"
        print(text, flush=True)


def tune_norm(tuner: Tuner) -> None:
    c, rows = tuner.config.embed_dim, tuner.batch * tuner.config.grid_size**2
    x = [tuner.random(rows, c) for _ in range(BUFFERS)]
    shift, weight, bias = (tuner.random(c, dtype=torch.float32) for _ in range(3))
    out = torch.empty_like(x[0])
    doubles = (t.double() for t in (weight, bias))
    reference = F.layer_norm(x[0].double() + shift.double(), (c,), *doubles, 1e-6)
    for option in (
        (2, 16, 1), (2, 8, 1), (4, 8, 1), (4, 16, 1), (1, 16, 1), (1, 32, 1), (2, 8, 2),
        (4, 8, 2), (1, 8, 2), (1, 8, 4), (2, 8, 4), (4, 4, 4), (4, 4, 8),
    ):  # fmt: skip
        tiles = norm.NormTiles(*option)
        tuner.run(
            "norm",
            f"rows {tiles.block_rows} programs {tiles.programs_per_sm} warps {tiles.num_warps}",
            lambda i, tiles=tiles: norm.layer_norm(
                x[i], shift, weight, bias, out, 1e-6, tiles=tiles
            ),
            lambda: out,
            reference,
            moved=4.0 * x[0].numel(),
        )


def attention_reference(qkv, rel_pos_h, rel_pos_w, heads):
    """fp32, head by head: qkv [B, H, W, 3 * heads * D]."""
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * heads)
    grid = qkv.float().view(batch, height * width, 3, heads, dim)
    out = torch.empty(batch, height * width, heads, dim, device=qkv.device)
    y = torch.arange(height, device=qkv.device)
    x = torch.arange(width, device=qkv.device)
    table_h = rel_pos_h.float()[y[:, None] - y + height - 1]
    table_w = rel_pos_w.float()[x[:, None] - x + width - 1]
    for head in range(heads):
        q, k, v = (grid[:, :, part, head] for part in range(3))
        square = q.view(batch, height, width, dim)
        bias_h = torch.einsum("bhwc,hkc->bhwk", square, table_h)
        bias_w = torch.einsum("bhwc,wkc->bhwk", square, table_w)
        scores = (q @ k.transpose(1, 2) * dim**-0.5).view(batch, height, width, height, width)
        scores = scores + bias_h[..., :, None] + bias_w[..., None, :]
        weights = scores.view(batch, height * width, height * width).softmax(-1)
        out[:, :, head] = weights @ v
    return out.view(batch, height, width, heads * dim).double()


def window_reference(qkv, bias, rel_pos_h, rel_pos_w, window, heads):
    batch, height, width, channels = qkv.shape
    pad = -height % window
    tall = height + pad
    padded = bias.expand(batch, tall, tall, channels).clone()
    padded[:, :height, :width] = qkv
    count = tall // window
    windows = padded.view(batch, count, window, count, window, channels).transpose(2, 3)
    windows = windows.reshape(-1, window, window, channels)
    out = attention_reference(windows, rel_pos_h, rel_pos_w, heads)
    out = out.view(batch, count, count, window, window, -1).transpose(2, 3)
    return out.reshape(batch, tall, tall, -1)[:, :height, :width]


def tune_window(tuner: Tuner) -> None:
    config, side = tuner.config, tuner.config.grid_size
    c, d = config.embed_dim, config.head_dim
    qkv = [tuner.random(tuner.batch, side, side, 3 * c) for _ in range(BUFFERS)]
    bias = tuner.random(3 * c)
    rel_pos = [tuner.random(2 * config.window_size - 1, d, scale=0.1) for _ in range(2)]
    tables = (r.float() for r in rel_pos)
    table = window_attention.window_table(*tables, config.window_size).to(tuner.dtype)
    out = tuner.random(tuner.batch, side, side, c)
    reference = window_reference(qkv[0], bias, *rel_pos, config.window_size, config.num_heads)
    places = window_attention.window_places(config.window_size).to("cuda", tuner.dtype)
    for option in (
        (64, 4, 64, 2), (64, 4, 32, 2), (64, 4, 32, 3), (64, 4, 64, 3), (64, 4, 64, 2, 128),
        (128, 8, 64, 2), (128, 8, 64, 2, 128), (128, 8, 32, 2), (128, 8, 64, 3), (64, 4, 128, 2),
    ):  # fmt: skip
        tiles = window_attention.WindowTiles(*option)
        tuner.run(
            "window",
            " ".join(map(str, option)),
            lambda i, tiles=tiles: window_attention.window_attention(
                qkv[i], bias, table, places, out, config.window_size, config.num_heads, tiles
            ),
            lambda: out,
            reference,
            flop=4.0 * tuner.batch * side * side * config.window_size**2 * c,
        )


def tune_global(tuner: Tuner) -> None:
    config, side, heads = tuner.config, tuner.config.grid_size, tuner.config.num_heads
    c, d, tokens = config.embed_dim, config.head_dim, side * side
    qkv = [tuner.random(tuner.batch, side, side, 3 * c) for _ in range(BUFFERS)]
    rel_pos = [tuner.random(2 * side - 1, d, scale=0.1) for _ in range(2)]
    tables = [(r.float() * d**0.5).to(tuner.dtype) for r in rel_pos]
    rel_h = torch.empty(tuner.batch, heads, side, tokens, device="cuda")
    block = global_attention.row_block(side)
    rel_w = tuner.random(tuner.batch, heads, tokens, block)
    out = tuner.random(tuner.batch, side, side, c)

    def relative(i: int) -> None:
        global_attention.relative_positions(qkv[i], *tables, rel_h, rel_w, heads)

    tuner.run("relative", "", relative, lambda: rel_w, None)
    relative(0)
    reference = attention_reference(qkv[0], *rel_pos, heads)
    for block_m, rows, warps, stages, registers in (
        (64, 1, 4, 3, None), (64, 1, 4, 2, 128), (64, 2, 4, 2, None), (64, 2, 4, 2, 168),
        (128, 1, 8, 2, None), (128, 1, 8, 3, None), (128, 1, 8, 3, 128), (128, 1, 8, 4, None),
        (128, 2, 8, 2, None), (128, 2, 8, 3, None), (128, 1, 4, 3, None),
    ):  # fmt: skip
        tiles = global_attention.GlobalTiles(block_m, rows, warps, stages, registers)
        tuner.run(
            "global",
            f"{block_m} rows {rows} warps {warps} stages {stages} registers {registers}",
            lambda i, tiles=tiles: global_attention.global_attention(
                qkv[i], rel_h, rel_w, out, heads, tiles
            ),
            lambda: out,
            # rel_h and rel_w belong to the first buffer; for the time that is no matter.
            reference,
            flop=4.0 * tuner.batch * tokens * tokens * c,
        )


def tune_linear(tuner: Tuner) -> None:
    config = tuner.config
    rows = tuner.batch * config.grid_size**2
    workspace = make_workspace(torch.device("cuda:0"))
    for name, n, k in (
        ("qkv", 3 * config.embed_dim, config.embed_dim),
        ("proj", config.embed_dim, config.embed_dim),
        ("lin1", config.mlp_dim, config.embed_dim),
        ("lin2", config.embed_dim, config.mlp_dim),
    ):
        a = [tuner.random(rows, k) for _ in range(BUFFERS)]
        weight = [tuner.random(n, k, scale=k**-0.5) for _ in range(BUFFERS)]
        bias = tuner.random(n)
        out = [tuner.random(rows, n) for _ in range(BUFFERS)]
        flop = 2.0 * rows * n * k
        with_bias = name in ("qkv", "lin1")
        reference = None
        if with_bias:
            reference = (a[0].float() @ weight[0].float().t() + bias.float()).double()

        def torch_call(i: int, *, a=a, weight=weight, out=out, bias=bias, w=with_bias) -> None:
            if w:
                torch.addmm(bias, a[i], weight[i].t(), out=out[i])
            else:
                out[i].addmm_(a[i], weight[i].t())

        for library in ("cublas", "cublaslt"):
            torch.backends.cuda.preferred_blas_library(library)
            label = f"{name} torch {library}"
            tuner.run("linear", label, torch_call, lambda out=out: out[0], reference, flop=flop)
        torch.backends.cuda.preferred_blas_library("default")
        product = Product(rows, n, k, tuner.dtype, with_bias, workspace)
        for choice in range(product.candidates):

            def call(i: int, *, p=product, c=choice, a=a, weight=weight, out=out, bias=bias):
                p.choice = c
                p(a[i], weight[i], bias if p._bias else None, out[i])

            label = f"{name} cublasLt {choice}/{product.candidates}"
            tuner.run("linear", label, call, lambda out=out: out[0], reference, flop=flop)


def tune_gelu(tuner: Tuner) -> None:
    config = tuner.config
    rows, k, n = tuner.batch * config.grid_size**2, config.embed_dim, config.mlp_dim
    a = [tuner.random(rows, k) for _ in range(BUFFERS)]
    weight = [tuner.random(n, k, scale=k**-0.5) for _ in range(BUFFERS)]
    bias = tuner.random(n, dtype=torch.float32)
    out = [tuner.random(rows, n) for _ in range(BUFFERS)]
    half_bias = bias.to(tuner.dtype)
    reference = F.gelu(a[0].float() @ weight[0].float().t() + bias).double()
    flop = 2.0 * rows * n * k

    def separate(i: int) -> None:
        torch.addmm(half_bias, a[i], weight[i].t(), out=out[i])
        gemm.gelu(out[i], out[i])

    tuner.run("gelu", "cuBLAS + separate gelu", separate, lambda: out[0], reference, flop=flop)
    options = [
        {}, {"epilogue_parts": 1}, {"flatten": False}, {"group_m": 16},
        {"flatten": False, "programs_per_sm": 0}, {"group_m": 4},
        {"block_m": 256, "block_n": 128}, {"block_n": 128, "num_stages": 4},
        {"block_m": 256, "block_n": 128, "flatten": False, "programs_per_sm": 0},
        {"block_n": 128, "num_stages": 3, "num_warps": 4, "programs_per_sm": 0, "flatten": False},
        {"block_n": 128, "num_stages": 3, "num_warps": 4, "programs_per_sm": 2, "flatten": False},
        {"block_n": 128, "num_stages": 3, "num_warps": 4, "programs_per_sm": 2},
        {"block_n": 128, "num_stages": 3, "num_warps": 8, "programs_per_sm": 2, "flatten": False},
        {"block_n": 256, "block_k": 32, "num_stages": 6, "flatten": False},
        {"block_m": 64, "block_n": 256, "num_warps": 4, "programs_per_sm": 2, "num_stages": 2},
    ]  # fmt: skip
    for option in options:
        tiles = gemm.GemmTiles(**option)
        tuner.run(
            "gelu",
            " ".join(f"{key}={value}" for key, value in option.items()) or "defaults",
            lambda i, tiles=tiles: gemm.linear_gelu(a[i], weight[i], bias, out[i], tiles),
            lambda: out[0],
            reference,
            flop=flop,
        )


def tune_neck(tuner: Tuner) -> None:
    config, side, c = tuner.config, tuner.config.grid_size, tuner.config.out_chans
    x = [tuner.random(tuner.batch, side, side, c) for _ in range(BUFFERS)]
    weight = tuner.random(c, c, 3, 3, scale=0.02).to(memory_format=torch.channels_last)
    gamma, beta = (tuner.random(c, dtype=torch.float32) for _ in range(2))
    out = torch.empty(tuner.batch, c, side, side, device="cuda")
    image = torch.randn(tuner.batch, 3, config.img_size, config.img_size, device="cuda")
    patches = tuner.random(tuner.batch * side**2, 3 * config.patch_size**2)
    tuner.run(
        "neck", "conv 3x3",
        lambda i: F.conv2d(x[i].permute(0, 3, 1, 2), weight, padding=1),
        lambda: out, None, flop=2.0 * tuner.batch * side**2 * c * c * 9,
    )  # fmt: skip
    reference = F.layer_norm(x[0].double(), (c,), gamma.double(), beta.double(), 1e-6)
    for rows, warps in ((32, 8), (32, 4), (16, 4), (64, 8)):
        tuner.run(
            "neck",
            f"norm to nchw rows {rows} warps {warps}",
            lambda i, r=rows, w=warps: norm.layer_norm_to_nchw(
                x[i], gamma, beta, out, 1e-6, block_rows=r, num_warps=w
            ),
            lambda: out,
            reference.permute(0, 3, 1, 2),
        )
    tuner.run(
        "neck", "patchify",
        lambda i: gemm.patchify(image, patches, config.patch_size), lambda: patches,
        F.unfold(image, config.patch_size, stride=config.patch_size)
        .transpose(1, 2).reshape(patches.shape).double(),
    )  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    tuner = Tuner(arguments)
    for section in arguments.sections:
        globals()[f"tune_{section}"](tuner)
    if arguments.output and not tuner.shard:
        arguments.output.write_text(json.dumps(tuner.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

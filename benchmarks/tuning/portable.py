"""Launch configurations of the Triton kernels, and cuBLAS beside them: ``PortableTrunk``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tuning.references import attention_reference, window_reference
from benchmarks.tuning.tuner import BUFFERS, Tuner
from samtrt.kernels.cublaslt import Product, make_workspace
from samtrt.kernels.triton import gemm, global_attention, norm, window_attention


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
            [(out, reference)],
            moved=4.0 * x[0].numel(),
        )


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
            [(out, reference)],
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

    tuner.run("relative", "", relative)
    relative(0)
    reference = attention_reference(qkv[0], *rel_pos, heads)
    for block_m, warps, stages, registers in (
        (64, 4, 3, None), (64, 4, 2, 128), (128, 8, 2, None), (128, 8, 3, None),
        (128, 8, 3, 128), (128, 8, 4, None), (128, 4, 3, None),
    ):  # fmt: skip
        tiles = global_attention.GlobalTiles(block_m, warps, stages, registers)
        tuner.run(
            "global",
            f"{block_m} warps {warps} stages {stages} registers {registers}",
            lambda i, tiles=tiles: global_attention.global_attention(
                qkv[i], rel_h, rel_w, out, heads, tiles
            ),
            # rel_h and rel_w belong to the first buffer; for the time that is no matter.
            [(out, reference)],
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
        checks: list[tuple[Tensor, Tensor]] = []  # an accumulated product is not checked
        if with_bias:
            expected = (a[0].float() @ weight[0].float().t() + bias.float()).double()
            checks = [(out[0], expected)]

        def torch_call(i: int, *, a=a, weight=weight, out=out, bias=bias, w=with_bias) -> None:
            if w:
                torch.addmm(bias, a[i], weight[i].t(), out=out[i])
            else:
                out[i].addmm_(a[i], weight[i].t())

        for library in ("cublas", "cublaslt"):
            torch.backends.cuda.preferred_blas_library(library)
            label = f"{name} torch {library}"
            tuner.run("linear", label, torch_call, checks, flop=flop)
        torch.backends.cuda.preferred_blas_library("default")
        product = Product(rows, n, k, tuner.dtype, with_bias, workspace)
        for choice in range(product.candidates):

            def call(i: int, *, p=product, c=choice, a=a, weight=weight, out=out, bias=bias):
                p.choice = c
                p(a[i], weight[i], bias if p._bias else None, out[i])

            label = f"{name} cublasLt {choice}/{product.candidates}"
            tuner.run("linear", label, call, checks, flop=flop)


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

    tuner.run("gelu", "cuBLAS + separate gelu", separate, [(out[0], reference)], flop=flop)
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
            [(out[0], reference)],
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
        flop=2.0 * tuner.batch * side**2 * c * c * 9,
    )  # fmt: skip
    reference = F.layer_norm(x[0].double(), (c,), gamma.double(), beta.double(), 1e-6)
    for rows, warps in ((32, 8), (32, 4), (16, 4), (64, 8)):
        tuner.run(
            "neck",
            f"norm to nchw rows {rows} warps {warps}",
            lambda i, r=rows, w=warps: norm.layer_norm_to_nchw(
                x[i], gamma, beta, out, 1e-6, block_rows=r, num_warps=w
            ),
            [(out, reference.permute(0, 3, 1, 2))],
        )
    unfolded = F.unfold(image, config.patch_size, stride=config.patch_size).transpose(1, 2)
    tuner.run(
        "neck",
        "patchify",
        lambda i: gemm.patchify(image, patches, config.patch_size),
        [(patches, unfolded.reshape(patches.shape).double())],
    )


SECTIONS = {
    "norm": tune_norm,
    "window": tune_window,
    "global": tune_global,
    "linear": tune_linear,
    "gelu": tune_gelu,
    "neck": tune_neck,
}

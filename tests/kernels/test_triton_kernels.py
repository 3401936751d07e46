"""Each Triton kernel against fp64, in Triton's interpreter on the CPU or compiled on a GPU.

Outputs are filled with NaN before each launch, so an element that is not written fails the test.
"""

import pytest
import torch
import torch.nn.functional as F
from kernel_references import (
    TOLERANCE,
    attention_reference,
    poisoned,
    random,
    relative_error,
    window_reference,
)
from triton_kernels import DEVICE, ON_GPU

from samtrt.errors import EngineError
from samtrt.kernels.triton import gemm, global_attention, norm, window_attention

# Triton's interpreter keeps bf16 as bare bits and multiplies those, so bf16 needs the GPU.
BFLOAT16 = pytest.param(
    torch.bfloat16,
    id="bf16",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU")],
)
TYPES = pytest.mark.parametrize("dtype", [pytest.param(torch.float16, id="fp16"), BFLOAT16])


@TYPES
@pytest.mark.parametrize(("rows", "channels"), [(5, 80), (33, 160), (4, 1280)])
def test_layer_norm(rows: int, channels: int, dtype: torch.dtype) -> None:
    x = random(rows, channels, dtype=dtype, seed=0, scale=3.0)
    shift, weight, bias = (random(channels, dtype=torch.float32, seed=s) for s in (1, 2, 3))
    out = poisoned(rows, channels, dtype=dtype)
    for block_rows in (1, 4):
        out.fill_(float("nan"))
        tiles = norm.NormTiles(block_rows=block_rows)
        norm.layer_norm(x, shift, weight, bias, out, 1e-6, tiles=tiles)
        reference = F.layer_norm(
            x.double() + shift.double(), (channels,), weight.double(), bias.double(), 1e-6
        )
        assert relative_error(out, reference) < TOLERANCE[dtype]


@TYPES
def test_layer_norm_to_nchw(dtype: torch.dtype) -> None:
    x = random(2, 5, 7, 48, dtype=dtype, seed=0, scale=3.0)
    weight, bias = (random(48, dtype=torch.float32, seed=s) for s in (1, 2))
    out = poisoned(2, 48, 5, 7, dtype=torch.float32)
    norm.layer_norm_to_nchw(x, weight, bias, out, 1e-6)
    reference = F.layer_norm(x.double(), (48,), weight.double(), bias.double(), 1e-6)
    assert relative_error(out, reference.permute(0, 3, 1, 2)) < 1e-6


def test_gelu_is_the_erf_form() -> None:
    x = torch.linspace(-12, 12, 4097, device=DEVICE)
    out = poisoned(4097, dtype=torch.float32)
    gemm.gelu(x, out)
    assert (out.double() - F.gelu(x.double())).abs().max() < 2e-6  # the tanh form is 5e-4 away


@TYPES
@pytest.mark.parametrize(("m", "n", "k"), [(64, 128, 64), (70, 200, 72), (200, 320, 80)])
@pytest.mark.parametrize("parts", [1, 2])
def test_linear_gelu(m: int, n: int, k: int, parts: int, dtype: torch.dtype) -> None:
    a = random(m, k, dtype=dtype, seed=0)
    weight = random(n, k, dtype=dtype, seed=1, scale=k**-0.5)
    bias = random(n, dtype=torch.float32, seed=2)
    out = poisoned(m, n, dtype=dtype)
    tiles = gemm.GemmTiles(block_m=64, block_n=64, block_k=32, epilogue_parts=parts, num_warps=4)
    gemm.linear_gelu(a, weight, bias, out, tiles)
    reference = F.gelu(F.linear(a.double(), weight.double(), bias.double()))
    assert relative_error(out, reference) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_every_cublaslt_candidate(bias: bool, dtype: torch.dtype) -> None:
    from samtrt.kernels.cublaslt import Product, make_workspace

    a = random(512, 640, dtype=dtype, seed=0)
    weight = random(768, 640, dtype=dtype, seed=1, scale=640**-0.5)
    vector = random(768, dtype=dtype, seed=2) if bias else None
    residual = random(512, 768, dtype=dtype, seed=3)
    reference = F.linear(a.double(), weight.double(), None if vector is None else vector.double())
    reference = reference if bias else reference + residual.double()
    product = Product(512, 768, 640, dtype, bias, make_workspace(torch.device("cuda:0")))
    assert product.candidates > 0
    for choice in range(product.candidates):
        product.choice = choice
        out = poisoned(512, 768, dtype=dtype) if bias else residual.clone()
        product(a, weight, vector, out)
        assert relative_error(out, reference) < TOLERANCE[dtype]


@TYPES
@pytest.mark.parametrize(("size", "patch"), [(64, 16), (40, 8), (42, 14)])
def test_patchify(size: int, patch: int, dtype: torch.dtype) -> None:
    image = random(2, 3, size, size, dtype=torch.float32, seed=0)
    out = poisoned(2 * (size // patch) ** 2, 3 * patch * patch, dtype=dtype)
    gemm.patchify(image, out, patch)
    reference = F.unfold(image, patch, stride=patch).transpose(1, 2).reshape(out.shape)
    assert torch.equal(out, reference.to(dtype))


@TYPES
@pytest.mark.parametrize(
    ("batch", "height", "width", "window", "heads", "dim"),
    [
        (1, 16, 16, 14, 2, 80),  # last windows almost wholly outside
        (1, 18, 16, 14, 1, 64),
        (1, 14, 28, 14, 2, 32),  # no padding
        (2, 8, 12, 7, 2, 16),
        (1, 9, 9, 5, 3, 48),
        (1, 10, 10, 16, 1, 80),  # one window, larger than the grid
        (1, 12, 8, 4, 2, 96),
    ],
)
def test_window_attention(
    batch: int, height: int, width: int, window: int, heads: int, dim: int, dtype: torch.dtype
) -> None:
    qkv = random(batch, height, width, 3 * heads * dim, dtype=dtype, seed=0)
    qkv_bias = random(3 * heads * dim, dtype=dtype, seed=1)
    rel_pos = [random(2 * window - 1, dim, dtype=dtype, seed=s, scale=0.3) for s in (2, 3)]
    table = window_attention.window_table(*(r.float() for r in rel_pos), window).to(dtype)
    places = window_attention.window_places(window).to(DEVICE, dtype)
    for options in ((64, 4), (128, 8), (64, 4, 32, 3)):
        out = poisoned(batch, height, width, heads * dim, dtype=dtype)
        tiles = window_attention.WindowTiles(*options)
        window_attention.window_attention(qkv, qkv_bias, table, places, out, window, heads, tiles)
        reference = window_reference(qkv, qkv_bias, *rel_pos, window, heads)
        assert relative_error(out, reference) < 2 * TOLERANCE[dtype]


@TYPES
@pytest.mark.parametrize(
    ("batch", "height", "width", "heads", "dim"),
    [
        (1, 8, 16, 2, 80),
        (2, 8, 8, 1, 64),  # one query tile, half of it past the end
        (1, 12, 20, 1, 16),
        (2, 5, 32, 1, 48),
    ],
)
@pytest.mark.parametrize("tma", [True, False])
def test_global_attention(
    batch: int,
    height: int,
    width: int,
    heads: int,
    dim: int,
    tma: bool,
    dtype: torch.dtype,
) -> None:
    qkv = random(batch, height, width, 3 * heads * dim, dtype=dtype, seed=0)
    rel_pos_h = random(2 * height - 1, dim, dtype=dtype, seed=1, scale=0.3)
    rel_pos_w = random(2 * width - 1, dim, dtype=dtype, seed=2, scale=0.3)
    tables = ((r.float() * dim**0.5).to(dtype) for r in (rel_pos_h, rel_pos_w))
    tokens = height * width
    rel_h = poisoned(batch, heads, height, tokens, dtype=torch.float32)
    rel_w = poisoned(batch, heads, tokens, global_attention.row_block(width), dtype=dtype)
    out = poisoned(batch, height, width, heads * dim, dtype=dtype)
    global_attention.relative_positions(qkv, *tables, rel_h, rel_w, heads)
    tiles = global_attention.GlobalTiles(block_m=64, num_warps=4, tma=tma)
    global_attention.global_attention(qkv, rel_h, rel_w, out, heads, tiles)
    reference = attention_reference(qkv, rel_pos_h, rel_pos_w, heads)
    assert relative_error(out, reference) < 2 * TOLERANCE[dtype]


def test_what_does_not_fit_raises() -> None:
    for window in (0, 17, 32):
        with pytest.raises(EngineError, match="window size"):
            window_attention.window_places(window)
    for dim in (8, 24, 88, 112, 160):
        with pytest.raises(EngineError, match="head dimension"):
            window_attention.split_head_dim(dim)
    assert window_attention.split_head_dim(80) == (64, 16)
    assert window_attention.split_head_dim(64) == (64, 0)
    with pytest.raises(EngineError, match="grid of 129"):
        global_attention.row_block(129)

"""The steps around the matrix products: patches into rows, and the MLP's first layer with GELU.

The other linears go to cuBLAS, whose epilogues cover them: a bias (``qkv``), or the residual as
the product's accumulator (``proj``, ``lin2``). It has no erf GELU, only the tanh form.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from samtrt.errors import EngineError
from samtrt.kernels.device import launches, multiprocessors


@triton.jit
def _patchify_kernel(
    image_ptr,
    out_ptr,
    grid_size,
    PATCH: tl.constexpr,
    BLOCK_PATCHES: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """One program: one pixel row of one channel of BLOCK_PATCHES patches beside each other."""
    block = tl.program_id(0)
    pixel_row = tl.program_id(1)
    channel = tl.program_id(2) % 3
    image = tl.program_id(2) // 3

    size = grid_size * PATCH
    blocks_x = tl.cdiv(grid_size, BLOCK_PATCHES)
    patch_y = block // blocks_x
    patch_x = (block % blocks_x) * BLOCK_PATCHES + tl.arange(0, BLOCK_PATCHES)
    pixel = tl.arange(0, BLOCK_PIXELS)
    mask = (patch_x < grid_size)[:, None] & (pixel < PATCH)[None, :]

    y = patch_y * PATCH + pixel_row
    source = ((image * 3 + channel).to(tl.int64) * size + y) * size
    pixels = tl.load(
        image_ptr + source + patch_x[:, None] * PATCH + pixel[None, :], mask=mask, other=0.0
    )
    row = (image * grid_size + patch_y).to(tl.int64) * grid_size + patch_x
    target = row[:, None] * (3 * PATCH * PATCH) + (channel * PATCH + pixel_row) * PATCH
    tl.store(out_ptr + target + pixel[None, :], pixels.to(out_ptr.dtype.element_ty), mask=mask)


@launches
def patchify(image: torch.Tensor, out: torch.Tensor, patch_size: int) -> None:
    """Cuts an image into patch rows: ``PatchEmbed.proj`` becomes a matrix product.

    Args:
        image: [B, 3, S, S] fp32, contiguous.
        out: [B * (S/P)², 3 * P * P], fp16 or bf16, contiguous; columns in the order of the
            convolution's weight, (channel, row, column).
        patch_size: P, in pixels.
    """
    batch, _, size, _ = image.shape
    grid_size = size // patch_size
    block = min(64, triton.next_power_of_2(grid_size))
    _patchify_kernel[(grid_size * triton.cdiv(grid_size, block), patch_size, batch * 3)](
        image,
        out,
        grid_size,
        PATCH=patch_size,
        BLOCK_PATCHES=block,
        BLOCK_PIXELS=triton.next_power_of_2(patch_size),
        num_warps=4,
    )


@triton.jit
def _gelu(x):
    """Erf GELU: relu(x) - |x| erfc(|x|/√2) / 2.

    erfc as in Abramowitz and Stegun 7.1.28 (absolute error 3e-7), the √2 in the coefficients: one
    reciprocal and ten multiply-adds, against about thirty instructions of libdevice's erf.
    """
    a = tl.abs(x)
    p = 5.382975e-06 * a + 4.88906356e-05
    p = p * a + 3.8003575e-05
    p = p * a + 3.27762632e-03
    p = p * a + 2.11410061e-02
    p = p * a + 4.98673470e-02
    p = p * a + 1.0
    p *= p
    p *= p
    p *= p
    p *= p
    return tl.maximum(x, 0.0) - 0.5 * a / p


@triton.jit
def _linear_gelu_kernel(
    a_desc,
    weight_desc,
    bias_ptr,
    out_desc,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
    EPILOGUE_PARTS: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Persistent: program p computes tiles p, p + PROGRAMS, …, in groups of GROUP_M row blocks."""
    blocks_m = tl.cdiv(M, BLOCK_M)
    blocks_n = tl.cdiv(N, BLOCK_N)
    tiles = blocks_m * blocks_n
    dtype = out_desc.dtype
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=FLATTEN):
        group_tiles = GROUP_M * blocks_n
        first_m = (tile // group_tiles) * GROUP_M
        group_rows = min(blocks_m - first_m, GROUP_M)
        m = (first_m + (tile % group_tiles) % group_rows) * BLOCK_M
        n = ((tile % group_tiles) // group_rows) * BLOCK_N

        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            a = a_desc.load([m, k])
            w = weight_desc.load([n, k])
            acc = tl.dot(a, w.T, acc)

        cols = n + tl.arange(0, BLOCK_N)
        bias = tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
        acc += bias[None, :]
        if EPILOGUE_PARTS == 1:
            out_desc.store([m, n], _gelu(acc).to(dtype))
        else:
            halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            out_desc.store([m, n], _gelu(left).to(dtype))
            out_desc.store([m, n + BLOCK_N // 2], _gelu(right).to(dtype))


@dataclass(frozen=True)
class GemmTiles:
    """How ``linear_gelu`` is cut into tiles: sizes, and Triton's launch options.

    ``programs_per_sm`` 0 launches one program a tile.
    """

    block_m: int = 128
    block_n: int = 256
    block_k: int = 64
    group_m: int = 8
    programs_per_sm: int = 1
    epilogue_parts: int = 2
    flatten: bool = True
    num_warps: int = 8
    num_stages: int = 3


@launches
def linear_gelu(
    a: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    tiles: GemmTiles,
) -> None:
    """``out = gelu(a @ weight.T + bias)`` with the erf GELU: ``mlp.act(mlp.lin1(x))``.

    Args:
        a: [M, K] fp16 or bf16, contiguous.
        weight: [N, K], the type of ``a``, contiguous.
        bias: [N], any float type.
        out: [M, N], the type of ``a``, contiguous.
        tiles: the launch configuration.

    Raises:
        EngineError: a row is not a multiple of 16 bytes (the copy engine needs that).
    """
    m, k = a.shape
    n = weight.shape[0]
    if k % 8 or n % 8:
        raise EngineError(
            f"an MLP of {k} → {n} channels is not supported by the cuda backend: both must be "
            "multiples of 8; use the tensorrt or cpu backend"
        )
    # (clamped: a block larger than the matrix would only multiply zeros)
    block_m = min(tiles.block_m, max(64, triton.next_power_of_2(m)))
    block_n = min(tiles.block_n, max(32, triton.next_power_of_2(n)))
    block_k = min(tiles.block_k, max(16, triton.next_power_of_2(k)))
    count = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    programs = count
    if tiles.programs_per_sm:
        programs = min(count, tiles.programs_per_sm * multiprocessors(a.device))
    parts = tiles.epilogue_parts
    _linear_gelu_kernel[(programs,)](
        TensorDescriptor.from_tensor(a, [block_m, block_k]),
        TensorDescriptor.from_tensor(weight, [block_n, block_k]),
        bias,
        TensorDescriptor.from_tensor(out, [block_m, block_n // parts]),
        m,
        n,
        k,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP_M=tiles.group_m,
        PROGRAMS=programs,
        EPILOGUE_PARTS=parts,
        FLATTEN=tiles.flatten,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


@triton.jit
def _gelu_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < count
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offset, _gelu(x).to(out_ptr.dtype.element_ty), mask=mask)


@launches
def gelu(x: torch.Tensor, out: torch.Tensor, *, block: int = 2048, num_warps: int = 4) -> None:
    """``out = gelu(x)``, the erf form, any shape, contiguous; ``out`` may be ``x``."""
    count = x.numel()
    _gelu_kernel[(triton.cdiv(count, block),)](x, out, count, BLOCK=block, num_warps=num_warps)

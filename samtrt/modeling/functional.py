"""The op vocabulary that the model is written in.

Outside a network the ops compute on ``torch.Tensor``; inside ``net_guard(network)`` the same
calls add layers to that network and take and return its tensors. Shapes are static except the
first axis (the batch, −1 in a network). Shape errors are ``ValueError``.

Primitives exist in every back end. Composites are written over primitives, and a back end that
has a better way overrides them by a function of the same name and signature.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch

from samtrt.modeling import torch_ops
from samtrt.modeling.network import active_network

Tensor = Any  # torch.Tensor, or the active network's tensor
_Function = TypeVar("_Function", bound=Callable[..., Tensor])


def _ops() -> Any:
    network = active_network()
    return torch_ops if network is None else network.ops


def _composite(function: _Function) -> _Function:
    @wraps(function)
    def dispatch(*args: Any, **kwargs: Any) -> Tensor:
        return getattr(_ops(), function.__name__, function)(*args, **kwargs)

    return dispatch  # type: ignore[return-value]


def _checks() -> bool:
    """Whether shapes are checked: not where torch traces or exports, and sizes are no numbers."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


def _require(condition: bool, op: str, text: str) -> None:
    if not condition:
        raise ValueError(f"{op}: {text}")


# ---------------------------------------------------------------------------- primitives


def constant(value: torch.Tensor, rank: int | None = None, name: str = "constant") -> Tensor:
    """A torch tensor as an operand, with leading axes of size 1 up to ``rank``.

    Args:
        name: of its layer in a network, after the module's path.
    """
    return _ops().constant(value, rank, name)


def sides(x: Tensor) -> tuple[int, int]:
    """(H, W) of tokens [B, H, W, C], as numbers also while torch traces."""
    return int(x.shape[1]), int(x.shape[2])


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in another dtype (float32, float16, bfloat16)."""
    return _ops().cast(x, dtype)


def view(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The elements of ``x`` in row-major order under another shape; one size may be −1."""
    if _checks():
        _require(list(shape).count(-1) <= 1, "view", f"more than one −1 in {tuple(shape)}")
    return _ops().view(x, shape)


def permute(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Axis i of the result is axis ``axes[i]`` of ``x``."""
    rank = len(x.shape)
    if _checks():
        _require(
            sorted(axes) == list(range(rank)),
            "permute",
            f"axes {tuple(axes)} for a tensor of {rank}",
        )
    return _ops().permute(x, axes)


def pad(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """``x`` with that many zeros before and after it along each axis."""
    if _checks():
        _require(
            len(before) == len(after) == len(x.shape) and min(*before, *after) >= 0,
            "pad",
            f"amounts {tuple(before)}, {tuple(after)} for shape {tuple(x.shape)}",
        )
    return _ops().pad(x, before, after)


def slice(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """The block of ``x`` at ``start``; a size of −1 reaches to the end of the axis."""
    shape = tuple(x.shape)
    if _checks():
        _require(
            len(start) == len(size) == len(shape)
            and all(
                first >= 0 and (length == -1 or extent == -1 or first + length <= extent)
                for first, length, extent in zip(start, size, shape, strict=True)
            ),
            "slice",
            f"start {tuple(start)}, size {tuple(size)} of shape {shape}",
        )
    return _ops().slice(x, start, size)


def concat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """The tensors end to end along an axis; their other sizes and dtypes are equal."""
    if _checks():
        others = {(*x.shape[:axis], *x.shape[axis + 1 :], x.dtype) for x in tensors}
        _require(
            len(others) == 1, "concat", f"shapes {[tuple(x.shape) for x in tensors]} at axis {axis}"
        )
    return _ops().concat(tensors, axis)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Elementwise x + y; equal ranks (in a network equal dtypes too), axes of size 1 broadcast."""
    _require_broadcast("add", x, y)
    return _ops().add(x, y)


def mul(x: Tensor, y: Tensor | float) -> Tensor:
    """Elementwise x · y, as ``add``; y may be a number."""
    if not isinstance(y, float):
        _require_broadcast("mul", x, y)
    return _ops().mul(x, y)


def matmul(x: Tensor, y: Tensor, transpose_y: bool = False) -> Tensor:
    """x [..., M, K] · y [..., K, N] → [..., M, N]; leading axes broadcast, equal ranks.

    With ``transpose_y``, y is [..., N, K].
    """
    xs, ys = tuple(x.shape), tuple(y.shape)
    if _checks():
        _require(
            len(xs) == len(ys) >= 2
            and _broadcasts(xs[:-2], ys[:-2])
            and xs[-1] == ys[-1 if transpose_y else -2],
            "matmul",
            f"shapes {xs} and {ys}{' (transposed)' if transpose_y else ''}",
        )
    return _ops().matmul(x, y, transpose_y)


def conv2d(
    x: Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int = 1, padding: int = 0
) -> Tensor:
    """Convolution of x [B, C, H, W] with weight [D, C, h, w]: [B, D, H', W'], zero padding."""
    shape = tuple(weight.shape)
    if _checks():
        _require(
            len(shape) == len(x.shape) == 4 and x.shape[1] == shape[1],
            "conv2d",
            f"input {tuple(x.shape)}, weight {shape}",
        )
    return _ops().conv2d(x, weight, bias, stride, padding)


def layer_norm(
    x: Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, axis: int = -1
) -> Tensor:
    """(x − mean) / √(variance + eps) · weight + bias along one axis, computed in float32.

    Weight and bias are [x.shape[axis]] and float32 (float64 for float64); the result has x's dtype.
    """
    if _checks():
        _require(
            tuple(weight.shape) == tuple(bias.shape) == (x.shape[axis],),
            "layer_norm",
            f"weight {tuple(weight.shape)} for axis {axis} of {tuple(x.shape)}",
        )
    return _ops().layer_norm(x, weight, bias, eps, axis)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis, computed in float32; the result has x's dtype."""
    return _ops().softmax(x)


def gelu(x: Tensor) -> Tensor:
    """x · Φ(x), with the error function (not the tanh approximation)."""
    return _ops().gelu(x)


# ---------------------------------------------------------------------------- composites


@_composite
def linear(x: Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Tensor:
    """x [..., C] · weightᵀ + bias, with weight [D, C] and bias [D] or none: [..., D]."""
    rank = len(x.shape)
    product = matmul(x, constant(weight, rank, "weight"), transpose_y=True)
    return product if bias is None else add(product, constant(bias, rank, "bias"))


@_composite
def window_partition(x: Tensor, window: int) -> Tensor:
    """Tokens [B, H, W, C] → windows [B · nH · nW, window, window, C], nH = ⌈H / window⌉.

    The grid is padded with zeros at the bottom and right to whole windows (Meta's
    ``window_partition``).
    """
    (height, width), channels = sides(x), int(x.shape[3])
    pad_h, pad_w = -height % window, -width % window
    if pad_h or pad_w:
        x = pad(x, (0, 0, 0, 0), (0, pad_h, pad_w, 0))
    rows, columns = (height + pad_h) // window, (width + pad_w) // window
    x = view(x, (-1, rows, window, columns, window, channels))
    x = permute(x, (0, 1, 3, 2, 4, 5))
    return view(x, (-1, window, window, channels))


@_composite
def window_unpartition(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Windows back to tokens [B, H, W, C] of that size (H, W); padding tokens are dropped."""
    height, width = size
    channels = int(x.shape[-1])
    rows, columns = -(-height // window), -(-width // window)
    x = view(x, (-1, rows, columns, window, window, channels))
    x = permute(x, (0, 1, 3, 2, 4, 5))
    x = view(x, (-1, rows * window, columns * window, channels))
    if (rows * window, columns * window) != (height, width):
        x = slice(x, (0, 0, 0, 0), (-1, height, width, -1))
    return x


@_composite
def rel_pos_bias(q: Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor) -> Tensor:
    """Decomposed relative positions (MViTv2, arXiv:2112.01526, eq. 5; Meta's
    ``add_decomposed_rel_pos``): bias [B, heads, H·W, H·W] of the attention scores.

    bias[(y, x), (y', x')] = q[y, x] · rel_h[y, y'] + q[y, x] · rel_w[x, x']

    Args:
        q: queries [B, heads, H·W, D], **not** scaled.
        rel_h: [H, H, D]. rel_w: [W, W, D].
    """
    _, heads, tokens, channels = q.shape
    height, width = len(rel_h), len(rel_w)
    if _checks():
        _require(tokens == height * width, "rel_pos_bias", f"{tokens} tokens of {height}×{width}")
    q = view(q, (-1, height, width, channels))
    by_row = matmul(q, constant(rel_h, 4, "rel_pos_h"), transpose_y=True)  # [B·heads, H, W, H]
    by_column = matmul(permute(q, (0, 2, 1, 3)), constant(rel_w, 4, "rel_pos_w"), transpose_y=True)
    by_column = permute(by_column, (0, 2, 1, 3))  # [B·heads, H, W, W]
    bias = add(
        view(by_row, (-1, tokens, height, 1)),
        view(by_column, (-1, tokens, 1, width)),
    )
    return view(bias, (-1, heads, tokens, tokens))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q · kᵀ + bias) · v, step by step; softmax in float32.

    Args:
        q, k, v: [B, heads, T, D], q already scaled. bias: [B, heads, T, T].
    """
    scores = add(matmul(q, k, transpose_y=True), bias)
    return matmul(softmax(scores), v)


@_composite
def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """``plain_attention`` by the back end's own attention operator, where it has one."""
    return plain_attention(q, k, v, bias)


@_composite
def fused_rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor
) -> Tensor:
    """``rel_pos_attention`` by the back end's own attention operator."""
    bias = rel_pos_bias(q, rel_h, rel_w)
    return fused_attention(mul(q, float(q.shape[-1] ** -0.5)), k, v, bias)


@_composite
def rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor, fused: bool = True
) -> Tensor:
    """Multi-head attention with decomposed relative positions: [B, heads, H·W, D].

    Scores are (q / √D) · kᵀ; the relative positions are taken from q as it is.

    Args:
        q, k, v: [B, heads, H·W, D].
        rel_h: [H, H, D], by the rows of query and key, the same for all that lie as far apart.
        rel_w: [W, W, D], by their columns, likewise.
        fused: by the back end's own attention operator, else step by step.
    """
    if fused:
        return fused_rel_pos_attention(q, k, v, rel_h, rel_w)
    bias = rel_pos_bias(q, rel_h, rel_w)
    return plain_attention(mul(q, float(q.shape[-1] ** -0.5)), k, v, bias)


def _broadcasts(xs: Sequence[int], ys: Sequence[int]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(xs, ys, strict=True))


def _require_broadcast(op: str, x: Tensor, y: Tensor) -> None:
    xs, ys = tuple(x.shape), tuple(y.shape)
    strict = active_network() is not None  # torch promotes types, as under autocast
    if _checks():
        _require(
            len(xs) == len(ys) and _broadcasts(xs, ys) and (not strict or x.dtype == y.dtype),
            op,
            f"{xs} of {x.dtype} and {ys} of {y.dtype}",
        )

"""Each op of the vocabulary: torch back end and TensorRT back end against float64.

The float64 references are written out here from the ops' definitions, with other torch functions
than the back ends use where there are any.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import trt_reader
from oracle import relative_l2

from samtrt.encoders.tensorrt import ops as ops_trt
from samtrt.encoders.tensorrt.builder import add_recording
from samtrt.encoders.tensorrt.library import shared_log
from samtrt.encoders.tensorrt.recording import Recording
from samtrt.modeling import functional as F
from samtrt.modeling.network import active_network, net_guard

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BATCH = 3


@dataclass
class Op:
    """An op on concrete shapes: ``call(*inputs, *parameters)`` and its float64 reference."""

    call: Callable
    reference: Callable
    inputs: list[tuple[int, ...]]
    parameters: list[tuple[int, ...]] = field(default_factory=list)
    full_precision: bool = False  # of the parameters


def layer_norm_reference(x, weight, bias, eps, axis):
    shape = [1] * x.ndim
    shape[axis] = -1
    variance = x.var(axis, keepdim=True, unbiased=False)
    normalised = (x - x.mean(axis, keepdim=True)) / (variance + eps).sqrt()
    return normalised * weight.view(shape) + bias.view(shape)


def windows_reference(x, window):
    """Meta's window_partition, by loops."""
    batch, height, width, channels = x.shape
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    padded = x.new_zeros(batch, rows * window, columns * window, channels)
    padded[:, :height, :width] = x
    return torch.stack(
        [
            padded[b, r * window : (r + 1) * window, c * window : (c + 1) * window]
            for b in range(batch)
            for r in range(rows)
            for c in range(columns)
        ]
    )


def rel_pos_bias_reference(q, rel_h, rel_w):
    batch, heads, _, channels = q.shape
    height, width = len(rel_h), len(rel_w)
    grid = q.view(batch, heads, height, width, channels)
    rows = torch.einsum("bnyxc,ykc->bnyxk", grid, rel_h)
    columns = torch.einsum("bnyxc,xkc->bnyxk", grid, rel_w)
    bias = rows[..., :, None] + columns[..., None, :]
    return bias.reshape(batch, heads, height * width, height * width)


def attention_reference(q, k, v, bias):
    scores = (torch.einsum("bnqc,bnkc->bnqk", q, k) + bias).exp()
    return torch.einsum("bnqk,bnkc->bnqc", scores / scores.sum(-1, keepdim=True), v)


def rel_pos_attention_reference(q, k, v, rel_h, rel_w):
    bias = rel_pos_bias_reference(q, rel_h, rel_w)
    return attention_reference(q / math.sqrt(q.shape[-1]), k, v, bias)


def by_pair(offsets):
    """Rows by the offset of query and key, [2 S - 1, D], as [S, S, D] by the two."""
    side = len(offsets) // 2 + 1
    return torch.stack([offsets[query : query + side].flip(0) for query in range(side)])


HEADS = (BATCH, 2, 12, 8)  # 2 heads, 3×4 tokens, 8 channels
OFFSETS = [(5, 8), (7, 8)]
TABLES = [(3, 3, 8), (4, 4, 8)]
OPS = {
    "constant": Op(lambda x, p: F.add(x, F.constant(p, 3)), torch.add, [(BATCH, 1, 5)], [(5,)]),
    "view": Op(lambda x: F.view(x, (-1, 6, 2)), lambda x: x.reshape(BATCH, 6, 2), [(BATCH, 3, 4)]),
    "permute": Op(
        lambda x: F.permute(x, (2, 0, 1)), lambda x: torch.einsum("abc->cab", x), [(BATCH, 3, 4)]
    ),
    "pad": Op(
        lambda x: F.pad(x, (0, 1, 0), (0, 2, 3)),
        lambda x: torch.nn.functional.pad(x, (0, 3, 1, 2)),
        [(BATCH, 3, 4)],
    ),
    "pad the batch": Op(
        lambda x: F.pad(x, (1, 0), (1, 0)),
        lambda x: torch.nn.functional.pad(x, (0, 0, 1, 1)),
        [(BATCH, 4)],
    ),
    "slice": Op(
        lambda x: F.slice(x, (0, 1, 2), (-1, 2, -1)), lambda x: x[:, 1:3, 2:], [(BATCH, 4, 5)]
    ),
    "slice the batch": Op(lambda x: F.slice(x, (1, 0), (-1, 2)), lambda x: x[1:, :2], [(BATCH, 5)]),
    "concat": Op(
        lambda x, y: F.concat([x, y], 1),
        lambda x, y: torch.cat([x, y], 1),
        [(BATCH, 2, 5), (BATCH, 3, 5)],
    ),
    "add": Op(F.add, torch.add, [(BATCH, 3, 4), (BATCH, 1, 4)]),
    "mul": Op(F.mul, torch.mul, [(BATCH, 3, 4), (BATCH, 1, 4)]),
    "mul by a number": Op(lambda x: F.mul(x, 0.75), lambda x: 0.75 * x, [(BATCH, 3)]),
    "matmul": Op(F.matmul, torch.matmul, [(BATCH, 2, 5, 64), (BATCH, 1, 64, 7)]),
    "matmul, transposed": Op(
        lambda x, y: F.matmul(x, y, transpose_y=True),
        lambda x, y: torch.einsum("bmk,bnk->bmn", x, y),
        [(BATCH, 5, 64), (BATCH, 7, 64)],
    ),
    "conv2d, patches": Op(
        lambda x, w, b: F.conv2d(x, w, b, stride=4),
        lambda x, w, b: torch.nn.functional.conv2d(x, w, b, stride=4),
        [(BATCH, 3, 8, 8)],
        [(6, 3, 4, 4), (6,)],
    ),
    "conv2d, padded, no bias": Op(
        lambda x, w: F.conv2d(x, w, None, padding=1),
        lambda x, w: torch.nn.functional.conv2d(x, w, padding=1),
        [(BATCH, 3, 8, 8)],
        [(6, 3, 3, 3)],
    ),
    "layer_norm": Op(
        lambda x, w, b: F.layer_norm(x, w, b, 1e-6),
        lambda x, w, b: layer_norm_reference(x, w, b, 1e-6, -1),
        [(BATCH, 3, 32)],
        [(32,), (32,)],
        full_precision=True,
    ),
    "layer_norm over channels, large eps": Op(
        lambda x, w, b: F.layer_norm(x, w, b, 0.5, axis=1),
        lambda x, w, b: layer_norm_reference(x, w, b, 0.5, 1),
        [(BATCH, 32, 3, 2)],
        [(32,), (32,)],
        full_precision=True,
    ),
    "softmax": Op(F.softmax, lambda x: x.exp() / x.exp().sum(-1, keepdim=True), [(BATCH, 3, 20)]),
    "gelu": Op(F.gelu, lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, [(BATCH, 50)]),
    "linear": Op(F.linear, lambda x, w, b: x @ w.T + b, [(BATCH, 2, 3, 64)], [(7, 64), (7,)]),
    "window_partition": Op(
        lambda x: F.window_partition(x, 3), lambda x: windows_reference(x, 3), [(BATCH, 4, 7, 2)]
    ),
    "window_partition, no padding": Op(
        lambda x: F.window_partition(x, 2), lambda x: windows_reference(x, 2), [(BATCH, 4, 6, 2)]
    ),
    "window_unpartition": Op(
        lambda x: F.window_unpartition(x, 3, (4, 7)),
        # Each token to its window and back is the identity; start from windows, padding included.
        lambda x: x.view(BATCH, 2, 3, 3, 3, 2).transpose(2, 3).reshape(BATCH, 6, 9, 2)[:, :4, :7],
        [(BATCH * 6, 3, 3, 2)],
    ),
    "rel_pos_bias": Op(F.rel_pos_bias, rel_pos_bias_reference, [HEADS], TABLES),
    "plain_attention": Op(
        F.plain_attention, attention_reference, [HEADS, HEADS, HEADS, (BATCH, 2, 12, 12)]
    ),
    "fused_attention": Op(
        F.fused_attention, attention_reference, [HEADS, HEADS, HEADS, (BATCH, 2, 12, 12)]
    ),
    **{
        f"rel_pos_attention, {name}": Op(
            lambda q, k, v, h, w, fused=fused: F.rel_pos_attention(
                q, k, v, by_pair(h), by_pair(w), fused
            ),
            lambda q, k, v, h, w: rel_pos_attention_reference(q, k, v, by_pair(h), by_pair(w)),
            [HEADS, HEADS, HEADS],
            OFFSETS,
        )
        for name, fused in (("fused", True), ("plain", False))
    },
}
# A few roundings on the way: no op has more than five results in its own precision.
ERROR = {dtype: 5 * torch.finfo(dtype).eps / 2 for dtype in DTYPES}


def make_operands(op, dtype):
    """Inputs and parameters in ``dtype``, and both once more in float64."""
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in op.inputs]
    precise = torch.float32 if op.full_precision else dtype
    parameters = [torch.randn(shape, generator=generator).to(precise) for shape in op.parameters]
    exact = [x.double() for x in inputs + parameters]
    return inputs, parameters, exact


def in_network(trt, call, inputs):
    """``call`` built as a network with a dynamic first axis, and evaluated by the reader."""
    log = shared_log(trt)
    log.errors.clear()
    recording = Recording(ops_trt)
    tensors = [
        recording.add_input(f"x{i}", (-1, *x.shape[1:]), x.dtype) for i, x in enumerate(inputs)
    ]
    with net_guard(recording):
        recording.outputs["y"] = call(*tensors)
    network = add_recording(trt, trt.Builder(log), recording)
    assert not log.errors
    values = {f"x{i}": x for i, x in enumerate(inputs)}
    return trt_reader.evaluate(trt, network.definition, values)["y"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_torch_back_end_against_float64(op, dtype):
    inputs, parameters, exact = make_operands(op, dtype)
    output, reference = op.call(*inputs, *parameters), op.reference(*exact)
    assert output.dtype == dtype
    assert output.shape == reference.shape
    assert relative_l2(output, reference) <= ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_tensorrt_back_end_against_float64(trt, op, dtype):
    inputs, parameters, exact = make_operands(op, dtype)
    output = in_network(trt, lambda *tensors: op.call(*tensors, *parameters), inputs)
    reference = op.reference(*exact)
    assert output.dtype == dtype
    assert output.shape == reference.shape
    assert relative_l2(output, reference) <= ERROR[dtype]


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_cast(trt, source, target):
    x = torch.randn(BATCH, 4).to(source)
    outputs = F.cast(x, target), in_network(trt, lambda y: F.mul(F.cast(y, target), 1.0), [x])
    for output in outputs:
        assert output.dtype == target
        assert torch.equal(output, x.double().to(target))


def test_gelu_is_not_the_tanh_approximation():
    x = torch.linspace(-4, 4, 100)
    tanh = torch.nn.functional.gelu(x, approximate="tanh")
    assert relative_l2(F.gelu(x), tanh) > 10 * ERROR[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_and_softmax_do_not_overflow_in_low_precision(trt, dtype):
    """Squares of 300 exceed float16, and a sum of 4096 equal weights loses them in both types."""
    weight, bias = torch.ones(64), torch.zeros(64)
    x = (300 * torch.randn(2, 64)).to(dtype)
    reference = layer_norm_reference(x.double(), torch.ones(64), torch.zeros(64), 1e-6, -1)

    def norm(y):
        return F.layer_norm(y, weight, bias, 1e-6)

    ones = torch.zeros(2, 4096, dtype=dtype)
    for output in (norm(x), in_network(trt, norm, [x])):
        assert relative_l2(output, reference) <= ERROR[dtype]
    for output in (F.softmax(ones), in_network(trt, F.softmax, [ones])):
        assert torch.equal(output, torch.full_like(ones, 1 / 4096))


SHAPE_ERRORS = {
    "view: more than one": lambda x: F.view(x, (-1, -1)),
    "permute: axes": lambda x: F.permute(x, (0, 0, 1)),
    "pad: amounts": lambda x: F.pad(x, (0, 0, 0), (0, -1, 0)),
    "slice: start": lambda x: F.slice(x, (0, 2, 0), (-1, 2, -1)),
    "add: .* of": lambda x: F.add(x, F.slice(x, (0, 0, 0), (-1, 2, 4))),
    "mul: .* of": lambda x: F.mul(x, F.view(x, (-1, 12))),
    "matmul: shapes": lambda x: F.matmul(x, x),
    "layer_norm: weight": lambda x: F.layer_norm(x, torch.zeros(5), torch.zeros(5), 1e-6),
    "conv2d: input": lambda x: F.conv2d(x, torch.zeros(2, 3, 1, 1), None),
    "rel_pos_bias: 3 tokens": lambda x: F.rel_pos_bias(
        F.view(x, (-1, 1, 3, 4)), torch.zeros(2, 2, 4), torch.zeros(2, 2, 4)
    ),
}


@pytest.mark.parametrize("message", SHAPE_ERRORS)
def test_shape_errors_are_the_same_in_both_back_ends(trt, message):
    call, x = SHAPE_ERRORS[message], torch.zeros(BATCH, 3, 4)
    with pytest.raises(ValueError, match=message):
        call(x)
    with pytest.raises(ValueError, match=message):
        in_network(trt, call, [x])


def test_net_guard_restores_on_error_and_nests():
    outer, inner = Recording(ops_trt), Recording(ops_trt)
    with pytest.raises(RuntimeError), net_guard(outer):
        with net_guard(inner):
            assert active_network() is inner
        assert active_network() is outer
        raise RuntimeError
    assert active_network() is None
    assert F.add(torch.ones(1), torch.ones(1)).item() == 2


def test_relative_positions_that_are_none_are_refused(trt):
    """The network's plain form reads a table by offsets alone."""
    op = OPS["rel_pos_attention, plain"]
    inputs, (rel_h, rel_w), _ = make_operands(op, torch.float32)
    tables = by_pair(rel_h), by_pair(rel_w).clone()
    tables[1][2, 1] += 1
    with pytest.raises(ValueError, match="offset"):
        in_network(
            trt, lambda *tensors: F.rel_pos_attention(*tensors, *tables, fused=False), inputs
        )

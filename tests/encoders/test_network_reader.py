"""The reader itself: what it does not know it refuses, and what it knows it does read.

Every setting of every layer of a small encoder's network is changed in turn. Either the reader
refuses the network, or the output moves far beyond the bar that the right network is held to.
"""

import numpy as np
import pytest
import torch
import trt_reader
from oracle import meta_encoder, relative_l2, tiny_config
from trt_reader import UnknownNetworkError

from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.tensorrt.builder import INPUT, OUTPUT, define_network
from samtrt.encoders.tensorrt.library import shared_log

pytestmark = pytest.mark.usefixtures("one_thread")

# One window block with padding, and one global block; a square MLP, so that a transposed weight
# still has a shape that fits.
CFG = tiny_config(depth=2, mlp_dim=32)


def build(trt, attention="fused", precision="fp32"):
    builder = trt.Builder(shared_log(trt))
    tensors = random_parameters(CFG).encoder()
    return define_network(trt, builder, CFG, tensors, precision, attention)


def find(trt, network, name, layer_class=None):
    definition = network.definition
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    layer = next(layer for layer in layers if layer.name == name)
    if layer_class:
        layer.__class__ = layer_class
    return layer


def picture():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, CFG.img_size, CFG.img_size, generator=generator)


@torch.inference_mode()
def error_of(trt, network):
    x = picture()
    output = trt_reader.evaluate(trt, network.definition, {INPUT: x})[OUTPUT]
    reference = meta_encoder(CFG)(x)
    return relative_l2(output, reference) if output.shape == reference.shape else float("inf")


def setting(layer, attribute, value):
    """A change of one setting; ``value`` may depend on the library."""

    def change(trt, network):
        classes = {
            "conv2d": trt.IConvolutionLayer,
            "view": trt.IShuffleLayer,
            "permute": trt.IShuffleLayer,
            "pad": trt.ISliceLayer,
            "slice": trt.ISliceLayer,
            "add": trt.IElementWiseLayer,
            "linear.product": trt.IMatrixMultiplyLayer,
            "layer_norm": trt.INormalizationLayer,
            "softmax": trt.ISoftMaxLayer,
            "gelu": trt.IActivationLayer,
            "cast": trt.ICastLayer,
        }
        kind = layer.rpartition("/")[2].partition("_")[0] if layer[-1].isdigit() else None
        found = find(trt, network, layer, classes[kind or layer.rpartition("/")[2]])
        setattr(found, attribute, value(trt) if callable(value) else value)

    return change


def constant(network, array):
    network.keep(array)
    return network.definition.add_constant(array.shape, array).get_output(0)


def fill_with_ones(trt, network):
    pad = find(trt, network, "blocks.0/pad", trt.ISliceLayer)
    pad.set_input(4, constant(network, np.ones((), np.float32)))


def other_mask(trt, network):
    attention = find(trt, network, "blocks.1.attn/attention_AttentionInput", None)
    attention.__class__ = trt.IAttentionInputLayer
    attention.attention.mask = constant(network, np.zeros((1, 1, 64, 64), np.float32))


def no_normalisation(trt, network):
    attention = find(trt, network, "blocks.1.attn/attention_AttentionInput", None)
    attention.__class__ = trt.IAttentionInputLayer
    attention.attention.norm_op = trt.AttentionNormalizationOp.NONE


def replace_output(add):
    """The network's output passes one more layer."""

    def change(trt, network):
        definition = network.definition
        last = definition.get_output(0)
        definition.unmark_output(last)
        last.name = "inner"
        output = add(trt, definition, last).get_output(0)
        output.name = OUTPUT
        definition.mark_output(output)

    return change


CHANGES_OF_THE_FUSED_NETWORK = {
    "convolution, padding": setting("neck.2/conv2d", "padding_nd", (0, 0)),
    "convolution, one side's padding": setting("neck.2/conv2d", "pre_padding", (2, 0)),
    "convolution, stride": setting("neck.2/conv2d", "stride_nd", (2, 2)),
    "convolution, dilation": setting("neck.2/conv2d", "dilation_nd", (2, 2)),
    "convolution, groups": setting("neck.2/conv2d", "num_groups", 2),
    "convolution, padding mode": setting(
        "neck.2/conv2d", "padding_mode", lambda trt: trt.PaddingMode.SAME_LOWER
    ),
    "convolution, kernel": setting(
        "neck.0/conv2d", "kernel", np.zeros(CFG.out_chans * CFG.embed_dim, np.float32)
    ),
    "convolution, bias": setting(
        "neck.0/conv2d", "bias", np.arange(CFG.out_chans, dtype=np.float32)
    ),
    "shuffle, shape": setting("blocks.0/view", "reshape_dims", (-1, 5, 2, 2, 5, 32)),
    "shuffle, placeholder": setting("blocks.0/view_2", "reshape_dims", (-1, 5, 0, 32)),
    "shuffle, first transpose": setting("blocks.0/permute", "first_transpose", (0, 3, 1, 2, 4, 5)),
    "shuffle, second transpose": setting("blocks.0/view_2", "second_transpose", (0, 2, 1, 3)),
    "slice, fill": fill_with_ones,
    "slice, mode": setting("blocks.0/pad", "mode", lambda trt: trt.SampleMode.CLAMP),
    "slice, start": setting("blocks.0/pad", "start", (0, -1, -1, 0)),
    "slice, stride": setting("blocks.0/pad", "stride", (1, 1, 1, 2)),
    "slice, start of q": setting("blocks.0.attn/slice", "start", (0, 0, 0, 16)),
    "elementwise, product": setting(
        "blocks.1/add", "op", lambda trt: trt.ElementWiseOperation.PROD
    ),
    "elementwise, maximum": setting("blocks.1/add", "op", lambda trt: trt.ElementWiseOperation.MAX),
    "matrix multiply, transposed weight": setting(
        "blocks.1.mlp.lin1/linear.product", "op1", lambda trt: trt.MatrixOperation.NONE
    ),
    "matrix multiply, vector": setting(
        "blocks.1.mlp.lin1/linear.product", "op1", lambda trt: trt.MatrixOperation.VECTOR
    ),
    "normalization, epsilon": setting("blocks.1.norm2/layer_norm", "epsilon", 0.1),
    "normalization, axes": setting("blocks.1.norm2/layer_norm", "axes", 0b1100),
    "normalization, groups": setting("blocks.1.norm2/layer_norm", "num_groups", 2),
    "activation, tanh": setting(
        "blocks.1.mlp.act/gelu", "type", lambda trt: trt.ActivationType.GELU_TANH
    ),
    "activation, alpha": setting("blocks.1.mlp.act/gelu", "alpha", 0.5),
    "attention, mask": other_mask,
    "attention, normalisation": no_normalisation,
    "unknown layer": replace_output(
        lambda trt, definition, x: definition.add_unary(x, trt.UnaryOperation.ABS)
    ),
    "unknown type": replace_output(
        lambda trt, definition, x: definition.add_cast(x, trt.DataType.INT32)
    ),
}
CHANGES_OF_THE_PLAIN_NETWORK = {
    "softmax, axis": setting("blocks.1.attn/softmax", "axes", 0b100),
    "constant added twice": replace_output(
        lambda trt, definition, x: definition.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
    ),
}
CHANGES_OF_THE_FP16_NETWORK = {
    # In the network's own types the statistics and the softmax must be float32.
    "norm in fp16": setting("blocks.1.norm2/cast", "to_type", lambda trt: trt.DataType.HALF),
    "softmax in fp16": setting("blocks.1.attn/cast", "to_type", lambda trt: trt.DataType.HALF),
    "output in bf16": setting("blocks.1.norm2/cast_2", "to_type", lambda trt: trt.DataType.BF16),
}


def refused_or_wrong(trt, network):
    try:
        return error_of(trt, network) > 1e-3
    except (UnknownNetworkError, RuntimeError):  # torch refuses shapes and types that do not fit
        return True


def test_unchanged_the_networks_are_right(trt):
    for attention in ("fused", "plain"):
        assert error_of(trt, build(trt, attention)) <= 1e-5
    assert error_of(trt, build(trt, "plain", "fp16")) <= 1e-2


@pytest.mark.parametrize("change", CHANGES_OF_THE_FUSED_NETWORK)
def test_a_change_of_the_fused_network_shows(trt, change):
    network = build(trt)
    CHANGES_OF_THE_FUSED_NETWORK[change](trt, network)
    assert refused_or_wrong(trt, network)


@pytest.mark.parametrize("change", CHANGES_OF_THE_PLAIN_NETWORK)
def test_a_change_of_the_plain_network_shows(trt, change):
    network = build(trt, "plain")
    CHANGES_OF_THE_PLAIN_NETWORK[change](trt, network)
    assert refused_or_wrong(trt, network)


@pytest.mark.parametrize("change", CHANGES_OF_THE_FP16_NETWORK)
def test_a_type_that_is_not_the_definitions_is_refused(trt, change):
    network = build(trt, "plain", "fp16")
    CHANGES_OF_THE_FP16_NETWORK[change](trt, network)
    with pytest.raises(UnknownNetworkError):
        error_of(trt, network)


def test_a_setting_that_the_reader_does_not_know_is_refused(trt, monkeypatch):
    network = build(trt)
    monkeypatch.setattr(trt.ISoftMaxLayer, "temperature", property(lambda self: 1), raising=False)
    error_of(trt, network)  # it has no softmax layer
    with pytest.raises(UnknownNetworkError, match="temperature"):
        error_of(trt, build(trt, "plain"))
    monkeypatch.setattr(trt.IAttention, "window", property(lambda self: 0), raising=False)
    with pytest.raises(UnknownNetworkError, match="window"):
        error_of(trt, network)


def test_inputs_must_be_those_of_the_network(trt):
    network, x = build(trt), picture()
    with pytest.raises(UnknownNetworkError, match="inputs"):
        trt_reader.evaluate(trt, network.definition, {"picture": x})
    with pytest.raises(UnknownNetworkError, match="infers"):
        trt_reader.evaluate(trt, network.definition, {INPUT: x.half()})
    with pytest.raises(UnknownNetworkError, match="infers"):
        trt_reader.evaluate(trt, network.definition, {INPUT: x[..., :64]})

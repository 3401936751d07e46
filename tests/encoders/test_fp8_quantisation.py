"""E4m3 scales and weights against the table of all e4m3 values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import tiny_config
from torch import Tensor
from triton_kernels import DEVICE  # noqa: F401 (before the kernels: it chooses the interpreter)

from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.quantisation import (
    Fp8Plan,
    all_linears,
    in_order,
    name_of,
    quantise,
    quantise_weight,
    scale_for,
)

CONFIG = tiny_config(depth=2)


def finite_values() -> np.ndarray:
    """Every finite e4m3 number by its definition (OCP 8-bit floating point, 1.0): bias 7, no
    infinities, S.1111.111 is NaN."""
    values = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        if exponent:
            values.append((1 + mantissa / 8) * 2.0 ** (exponent - 7))
        else:
            values.append(mantissa / 8 * 2.0**-6)
    return np.array(sorted({*values, *(-value for value in values)}))


def nearest_distance(values: Tensor) -> np.ndarray:
    table = finite_values()
    return np.abs(values.double().numpy().reshape(-1, 1) - table).min(1)


def plan_for(linears: frozenset[tuple[int, str]]) -> Fp8Plan:
    generator = torch.Generator().manual_seed(1)

    def scales(*shape: int) -> Tensor:
        return torch.exp2(torch.randint(-3, 4, shape, generator=generator).float())

    depth, channels = CONFIG.depth, CONFIG.embed_dim
    return Fp8Plan(linears, scales(depth, 2, channels), scales(depth, channels), scales(depth))


def parameters(fp8: Fp8Plan | None) -> EncoderParameters:
    tensors = random_parameters(CONFIG, 3).encoder()
    return EncoderParameters(CONFIG, tensors, torch.float16, torch.device("cpu"), fp8)


def test_values_are_rounded_to_the_nearest_and_saturate() -> None:
    values = torch.cat([torch.randn(3000) * 30, torch.randn(1000) * 0.01, torch.zeros(1)])
    rounded = quantise(values).float()
    expected = nearest_distance(values.clamp(-448, 448))
    np.testing.assert_allclose(
        (rounded - values.clamp(-448, 448)).abs().double().numpy(), expected, atol=0, rtol=0
    )
    assert quantise(torch.tensor([449.0, 1e9, -1e9]), 2.0).float().tolist() == [448, 448, -448]
    assert quantise(torch.tensor([3.0]), 0.25).float().item() == 0.75


def test_weights_by_output_channel() -> None:
    weight = torch.randn(20, 48) * torch.logspace(-3, 3, 20)[:, None]
    weight[4] = 0
    columns = torch.exp2(torch.randint(-4, 5, (48,)).float())
    q, scale = quantise_weight(weight, columns)
    assert q.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    stored = weight / columns / scale[:, None]
    # (a value near the middle of two may go either way: the quotient is rounded too)
    found = (q.float() - stored).abs().double().numpy().reshape(-1)
    assert (found <= nearest_distance(stored) + 1e-4).all()
    assert (q.float().abs().amax(1)[torch.arange(20) != 4] == 448).all()
    assert (q.float()[4] == 0).all() and torch.isfinite(scale).all()
    assert torch.equal(quantise_weight(weight)[1], quantise_weight(weight, torch.ones(48))[1])


def test_scales_are_powers_of_two_with_headroom() -> None:
    largest = torch.tensor([0.002, 0.3, 1.0, 14.0, 5000.0])
    scales = scale_for(largest)
    assert torch.equal(torch.exp2(torch.log2(scales).round()), scales)
    placed = largest * scales
    assert (placed <= 112).all() and (placed > 56).all()
    assert scale_for(torch.tensor(1e-6)) == 2.0**15  # the kernels have it in fp16, too
    assert scale_for(torch.zeros(2)).tolist() == [1, 1]


def test_a_norm_and_its_linear_are_one_product_of_the_stream() -> None:
    """Within what rounding both operands to e4m3 may do: 2^-4 of each, two of them."""
    plan = plan_for(all_linears(CONFIG))
    packed = parameters(plan)
    x = torch.randn(50, CONFIG.embed_dim) * 2 + 0.3
    sigma = (x.var(1, correction=0, keepdim=True) + CONFIG.layer_norm_eps).sqrt()
    for index, (name, norm) in enumerate((("attn.qkv", "norm1"), ("mlp.lin1", "norm2"))):
        linear = packed.linear(1, name)
        assert linear.weight.dtype == torch.float8_e4m3fn and linear.scale is not None
        scale = plan.residual_scale[1, index]
        product = quantise(x, scale).float() @ linear.weight.float().T
        found = product * linear.scale / sigma + linear.bias
        fp32 = packed.fp32
        weight, bias = fp32(f"blocks.1.{name}.weight"), fp32(f"blocks.1.{name}.bias")
        normed = torch.nn.functional.layer_norm(
            x, x.shape[1:], fp32(f"blocks.1.{norm}.weight"), fp32(f"blocks.1.{norm}.bias"), 1e-6
        )
        expected = normed @ weight.T + bias
        folded, _ = parameters(None).folded(1, name)
        bound = (x.abs() @ folded.abs().T) / sigma * (2 * 2**-4 + 2**-8) + 1e-3
        if name == "attn.qkv":  # V as attn.proj wants it
            inner = CONFIG.embed_dim
            found[:, 2 * inner :] /= plan.attended_scale[1]
        assert ((found - expected).abs() <= bound).all()
        assert (found - expected).norm() <= 0.1 * expected.norm()


def test_v_is_scaled_for_proj() -> None:
    plain, inner = parameters(None), CONFIG.embed_dim
    plan = plan_for(frozenset({(0, "attn.proj")}))
    packed, scale = parameters(plan), plan.attended_scale[0]
    v = slice(2 * inner, None)
    expected, found = plain.linear(0, "attn.qkv"), packed.linear(0, "attn.qkv")
    assert found.weight.dtype == torch.float16 and found.scale is None
    assert torch.equal(found.weight[: 2 * inner], expected.weight[: 2 * inner])
    assert torch.equal(found.weight[v], expected.weight[v] * scale[:, None])
    assert torch.equal(found.bias[v], expected.bias[v] * scale)
    bias = packed.fp32("blocks.0.attn.qkv.bias")
    assert torch.equal(packed.padding(0)[v], (bias[v] * scale).half())
    assert torch.equal(packed.padding(0)[: 2 * inner], bias[: 2 * inner].half())
    assert torch.equal(packed.padding(1), plain.matrix("blocks.1.attn.qkv.bias"))
    proj = packed.linear(0, "attn.proj")
    assert proj.scale is not None
    restored = proj.weight.float() * proj.scale[:, None] * scale
    weight = packed.fp32("blocks.0.attn.proj.weight")
    # Subnormals end at half of 2^-9 of the scale.
    bound = weight.abs() * 2**-4 + proj.scale[:, None] * scale * 2**-10
    assert ((restored - weight).abs() <= bound * 1.001).all()
    assert torch.equal(proj.bias, packed.fp32("blocks.0.attn.proj.bias"))
    assert packed.linear(1, "attn.proj").weight.dtype == torch.float16


def test_a_plan_survives_being_taken_apart() -> None:
    plan = plan_for(all_linears(CONFIG))
    packed = parameters(plan)
    kept = plan.linears - {(1, "mlp.lin1")}
    plan = replace(plan, packed={name: packed.quantised(*name) for name in plan.linears})
    tensors = plan.only(kept).to_tensors()
    again = Fp8Plan.from_tensors(tensors, kept)
    assert again.linears == kept == again.packed.keys()
    assert torch.equal(again.residual_scale, plan.residual_scale)
    for name in kept:
        expected, found = parameters(plan).linear(*name), parameters(again).linear(*name)
        assert torch.equal(found.weight.float(), expected.weight.float())
        assert torch.equal(found.bias, expected.bias) and found.scale is not None
        assert expected.scale is not None and torch.equal(found.scale, expected.scale)
    assert not any("1.mlp.lin1" in name for name in tensors)


@pytest.mark.parametrize("outliers", ["as large in every row", "of both signs"])
def test_channels_far_above_the_rest_cost_a_layer_nothing(outliers: str) -> None:
    """A stream with three channels 100 times as large, and a norm that makes up for them, as
    trained ViTs have them."""
    generator = torch.Generator().manual_seed(8)
    config = tiny_config(embed_dim=192, num_heads=3, depth=1, global_attn_indexes=())
    tensors = random_parameters(config, 3).encoder()
    x = torch.randn(400, 192, generator=generator)
    if outliers == "as large in every row":
        x[:, :3] = torch.tensor([1.0, -1.0, 1.0]) + 0.1 * x[:, :3]

    def error(factor: float) -> float:
        stream, norm = x.clone(), np.ones(192, np.float32)
        stream[:, :3] *= factor
        norm[:3] /= factor
        changed = {**tensors, "blocks.0.norm2.weight": norm}
        scale = scale_for(stream.abs().amax(0))
        plan = Fp8Plan(
            all_linears(config), scale.expand(1, 2, 192), torch.ones(1, 192), torch.ones(1)
        )
        packed = EncoderParameters(config, changed, torch.float16, torch.device("cpu"), plan)
        linear = packed.linear(0, "mlp.lin1")
        assert linear.scale is not None
        sigma = (stream.var(1, correction=0, keepdim=True) + config.layer_norm_eps).sqrt()
        product = quantise(stream, scale).float() @ linear.weight.float().T
        found = product * linear.scale / sigma + linear.bias
        bias = torch.from_numpy(tensors["blocks.0.norm2.bias"])
        normed = torch.nn.functional.layer_norm(
            stream.double(), (192,), torch.from_numpy(norm).double(), bias.double(), 1e-6
        )
        weight = packed.fp32("blocks.0.mlp.lin1.weight").double()
        expected = normed @ weight.T + packed.fp32("blocks.0.mlp.lin1.bias")
        return ((found - expected).norm() / expected.norm()).item()

    assert error(100.0) < 1.25 * error(1.0)


def test_another_plan_has_another_digest() -> None:
    """Embeddings of two plans are not one another's: what computed them says so."""
    plan = plan_for(all_linears(CONFIG))
    plan = replace(plan, packed={n: parameters(plan).quantised(*n) for n in plan.linears})
    name = (1, "mlp.lin1")
    weight = plan.packed[name].weight.clone()
    weight.view(torch.uint8)[3, 7] ^= 1
    moved = replace(plan.packed[name], weight=weight)
    others = [
        plan,
        plan.only(plan.linears - {name}),
        replace(plan, packed={**plan.packed, name: moved}),
        replace(plan, hidden_scale=2 * plan.hidden_scale),
        replace(plan, packed={}),
    ]
    digests = [other.digest() for other in others]
    assert len(set(digests)) == len(others) and plan.only(plan.linears).digest() == digests[0]


def test_names_and_order() -> None:
    linears = all_linears(CONFIG)
    assert [name_of(linear) for linear in in_order(linears)][:5] == [
        "0.attn.qkv", "0.attn.proj", "0.mlp.lin1", "0.mlp.lin2", "1.attn.qkv"
    ]  # fmt: skip

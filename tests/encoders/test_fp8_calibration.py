"""Calibration, GPTQ rounding and the fake-quantised encoder, against Meta's and brute force."""

from dataclasses import replace

import pytest
import torch
import triton_kernels  # noqa: F401 (before the kernels: it chooses Triton's interpreter)
from oracle import meta_encoder, relative_l2, tiny_config
from torch import Tensor

from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.cuda.calibration import calibrated_plan, sensitivities
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.quantisation import (
    Fp8Plan,
    LinearName,
    all_linears,
    quantise,
    quantise_weight,
)
from samtrt.encoders.cuda.rounding import round_weight

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config()
TENSORS = random_parameters(CONFIG, 3).encoder()


def pictures(count: int, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 3, CONFIG.img_size, CONFIG.img_size)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def plan() -> Fp8Plan:
    return calibrated_plan(CONFIG, TENSORS, pictures(2))


def test_without_e4m3_it_is_metas_encoder() -> None:
    (x,) = pictures(1, 9)
    with torch.no_grad():
        expected = meta_encoder(CONFIG, 3).double().eval()(x.double())
    assert relative_l2(Fp8Reference(CONFIG, TENSORS)(x), expected) < 3e-3  # fp16's stream


def test_only_what_the_plan_names_is_rounded(plan: Fp8Plan) -> None:
    (x,) = pictures(1, 9)
    exact = Fp8Reference(CONFIG, TENSORS)(x)
    none = Fp8Reference(CONFIG, TENSORS, replace(plan, linears=frozenset()))(x)
    assert torch.equal(none, exact)
    errors = [
        relative_l2(Fp8Reference(CONFIG, TENSORS, replace(plan, linears=some))(x), exact)
        for some in (frozenset({(1, "mlp.lin2")}), all_linears(CONFIG))
    ]
    assert 1e-4 < errors[0] < errors[1] < 0.2


def test_a_linear_computes_with_e4m3_values_alone(plan: Fp8Plan) -> None:
    """The last block's lin2, by hand from what it reads."""
    read: dict[LinearName, Tensor] = {}
    name = (CONFIG.depth - 1, "mlp.lin2")
    (x,) = pictures(1, 9)
    outputs = {}

    def observe(linear: LinearName, a: Tensor, _: Tensor | None) -> None:
        read[linear] = a

    for linears in (frozenset[LinearName](), frozenset({name})):
        encoder = Fp8Reference(CONFIG, TENSORS, replace(plan, linears=linears), observe=observe)
        stream: list[Tensor] = []
        hook = encoder._encoder.neck.register_forward_pre_hook(
            lambda _, given, stream=stream: stream.append(given[0])
        )
        encoder(x)
        hook.remove()
        outputs[linears] = stream[0].permute(0, 2, 3, 1).flatten(0, 2)
    packed = plan.packed[name]
    assert packed.scale is not None and packed.weight.dtype == torch.float8_e4m3fn
    scale = plan.hidden_scale[name[0]]
    product = quantise(read[name], scale).double() @ packed.weight.double().T * packed.scale
    weight = torch.from_numpy(TENSORS["blocks.2.mlp.lin2.weight"]).double()
    moved = product - read[name].double() @ weight.T
    difference = (outputs[frozenset({name})] - outputs[frozenset()]).double()
    # (both streams are rounded to fp16)
    assert (difference - moved).abs().max() <= 2 * 2**-11 * outputs[frozenset()].abs().max()
    assert moved.norm() > 0


def test_scales_leave_headroom_over_what_was_seen(plan: Fp8Plan) -> None:
    largest: dict[LinearName, Tensor] = {}

    def observe(linear: LinearName, a: Tensor, _: Tensor | None) -> None:
        here = a.abs().amax(0)
        largest[linear] = torch.maximum(largest.get(linear, here), here)

    encoder = Fp8Reference(CONFIG, TENSORS, observe=observe)
    for picture in pictures(2):
        encoder(picture)
    for linear, seen in largest.items():
        placed = seen * plan.input_scale(*linear, CONFIG)
        assert placed.max() <= 112 and placed.max() > 56


def test_it_is_reproducible(plan: Fp8Plan) -> None:
    again = calibrated_plan(CONFIG, TENSORS, pictures(2))
    assert torch.equal(again.residual_scale, plan.residual_scale)
    for linear, packed in plan.packed.items():
        assert torch.equal(packed.weight.float(), again.packed[linear].weight.float())


def test_rounding_moves_the_product_less_than_the_nearest_does() -> None:
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(12, 48, generator=generator)
    inputs = torch.randn(2000, 12, generator=generator) @ mixing  # 36 directions are never met
    weight = torch.randn(30, 48, generator=generator)
    columns = torch.exp2(torch.randint(-2, 3, (48,), generator=generator).float())
    moved = []
    for q, scale in (
        quantise_weight(weight, columns),
        round_weight(weight, columns, inputs.T @ inputs),
    ):
        restored = q.float() * scale[:, None] * columns
        moved.append((inputs @ (restored - weight).T).norm())
        assert q.float().abs().max() <= 448
    assert moved[1] < 0.5 * moved[0]


def test_inputs_that_are_not_correlated_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(3))
    q, scale = round_weight(weight, torch.ones(200), torch.diag(torch.rand(200) + 0.5))
    nearest, expected = quantise_weight(weight)
    assert torch.equal(q.float(), nearest.float()) and torch.equal(scale, expected)


def test_channels_that_were_never_seen_do_not_break_it() -> None:
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(4))
    q, scale = round_weight(weight, torch.ones(12), torch.zeros(12, 12))
    assert torch.equal(q.float(), quantise_weight(weight)[0].float())
    assert torch.isfinite(scale).all()


def test_the_sensitivity_of_a_linear_is_what_it_moves(plan: Fp8Plan) -> None:
    encoder = Fp8Reference(CONFIG, TENSORS)
    two = replace(plan, linears=frozenset({(0, "attn.qkv"), (2, "mlp.lin1")}))
    given = pictures(2, 11)
    found = sensitivities(encoder, two, given, lambda text: None)
    assert found.keys() == two.linears
    for linear, error in found.items():
        one = Fp8Reference(CONFIG, TENSORS, replace(plan, linears=frozenset({linear})))
        errors = [relative_l2(one(x), Fp8Reference(CONFIG, TENSORS)(x)) for x in given]
        assert error == pytest.approx((sum(e**2 for e in errors) / 2) ** 0.5, rel=1e-5)

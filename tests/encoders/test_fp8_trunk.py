"""Hopper's trunk in e4m3 against the reference that rounds by the same plan."""

import hopper_stand_ins
import pytest
import torch
import triton_kernels  # noqa: F401 (before the kernels: it chooses Triton's interpreter)
from oracle import relative_l2, tiny_config
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig, vit_b
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.cuda import FusedImageEncoder, hopper
from samtrt.encoders.cuda.calibration import calibrated_plan
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.quantisation import LINEARS, Fp8Plan, parse_linears

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config(embed_dim=256, num_heads=4, depth=3, img_size=256, window_size=14, mlp_dim=512)


def pictures(config: EncoderConfig) -> list[Tensor]:
    size = config.img_size
    generator = torch.Generator().manual_seed(7)
    return list(torch.randn(2, 3, size, size, generator=generator).split(1))


def stream_of(encoder: Fp8Reference, x: Tensor) -> Tensor:
    """The residual stream after the last block, [B * H * W, C]."""
    found: list[Tensor] = []
    hook = encoder._encoder.neck.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    encoder(x)
    hook.remove()
    return found[0].permute(0, 2, 3, 1).flatten(0, 2)


@pytest.fixture(scope="module")
def plan() -> Fp8Plan:
    tensors = random_parameters(CONFIG, 3).encoder()
    return calibrated_plan(CONFIG, tensors, pictures(CONFIG)[:1])


def trunk_and_reference(plan: Fp8Plan, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The stream by the trunk, by the reference, and by the reference in fp32."""
    hopper_stand_ins.put_in_place(monkeypatch)
    tensors = random_parameters(CONFIG, 3).encoder()
    x = pictures(CONFIG)[1]
    packed = EncoderParameters(
        CONFIG, plan.not_packed(tensors), torch.float16, torch.device("cpu"), plan
    )
    patches = torch.nn.functional.unfold(x, 16, stride=16)[0].t().half().contiguous()
    ours = hopper.HopperTrunk(packed, 1)(patches, 1, {}).float()
    rounded, exact = (Fp8Reference(CONFIG, tensors, p) for p in (plan, None))
    exact.stream = torch.float32
    return [ours, stream_of(rounded, x), stream_of(exact, x)]


@pytest.mark.parametrize("kept", [(), ("1",), ("0.attn.proj", "2.attn.qkv")], ids=str)
def test_the_trunk_is_as_far_from_fp32_as_the_reference(
    plan: Fp8Plan, kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan.only(plan.linears - parse_linears(kept, CONFIG))
    ours, rounded, exact = trunk_and_reference(plan, monkeypatch)
    assert relative_l2(rounded, exact) > 0.02
    assert relative_l2(ours, exact) == pytest.approx(relative_l2(rounded, exact), rel=0.1)


@pytest.mark.parametrize("name", LINEARS)
def test_one_linear_rounds_as_the_plan_says(
    plan: Fp8Plan, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in fp16's rounding between the layers, and where that tips a value into another
    e4m3 number."""
    ours, rounded, exact = trunk_and_reference(plan.only({(2, name)}), monkeypatch)
    error = relative_l2(rounded, exact)
    assert error > 2e-3 and relative_l2(ours, rounded) < 0.3 * error


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="for Hopper",
)
def test_the_kernels_are_as_far_from_fp32_as_the_reference() -> None:
    config = vit_b()
    tensors = random_parameters(config, 3).encoder()
    calibration, x = (picture.cuda() for picture in pictures(config))
    plan = calibrated_plan(config, tensors, [calibration], "cuda")
    exact, rounded = (Fp8Reference(config, tensors, p, "cuda") for p in (None, plan))
    exact.stream = torch.float32
    expected = exact(x)
    encoder = FusedImageEncoder(config, plan.not_packed(tensors), "fp8", "cuda", fp8=plan)
    assert relative_l2(encoder(x), expected) < 1.1 * relative_l2(rounded(x), expected)

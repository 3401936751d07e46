"""The fused runtime against Meta's encoder: small in Triton's interpreter, full size on a GPU."""

import dataclasses

import hopper_stand_ins
import numpy as np
import pytest
import torch
from family_references import expected as family_reference
from family_references import with_taps
from oracle import meta_encoder, relative_l2, tiny_config
from triton_kernels import DEVICE, ON_GPU

from samtrt.checkpoints.config import EncoderConfig, vit_b, vit_h, vit_l
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.cuda import FusedImageEncoder, hopper
from samtrt.encoders.cuda.ends import End
from samtrt.encoders.cuda.packing import EncoderParameters
from samtrt.encoders.cuda.quantisation import LINEARS, Fp8Plan
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError, InputError
from samtrt.kernels.digest import kernels_digest
from samtrt.modeling.heads import split_taps
from samtrt.modeling.image_encoder import resize_rel_pos


def errors(
    config: EncoderConfig, precision: str, batch: int, dtype: torch.dtype = torch.float64
) -> tuple[float, float]:
    """Relative L2 error of ours and of Meta's own code in the same precision."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, 3, config.img_size, config.img_size, generator=generator).to(DEVICE)
    meta = meta_encoder(config, seed=3).to(DEVICE).eval()
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    encoder = FusedImageEncoder(
        config, random_parameters(config, 3).encoder(), precision, DEVICE, max_batch_size=batch
    )
    out = encoder(x)
    assert out.dtype == torch.float32
    with torch.no_grad():
        own = meta.to(half)(x.to(half))
        meta = meta_encoder(config, seed=3).to(DEVICE, dtype).eval()
        reference = meta(x.to(dtype))
    return relative_l2(out, reference), relative_l2(own, reference)


@pytest.mark.parametrize(
    ("config", "batch"),
    [
        (tiny_config(), 1),
        (tiny_config(embed_dim=160, num_heads=2, depth=2, img_size=96, window_size=4), 2),
        (tiny_config(embed_dim=64, num_heads=1, depth=2, img_size=80, window_size=5), 1),
        # (of the sizes that Hopper has kernels of its own for)
        pytest.param(
            tiny_config(embed_dim=192, num_heads=3, depth=2, img_size=256, window_size=14),
            1,
            marks=pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU"),
        ),
    ],
    ids=["head16", "head80-batch2", "head64-no-padding", "hopper"],
)
def test_small_encoders_in_fp16(config: EncoderConfig, batch: int) -> None:
    ours, meta = errors(config, "fp16", batch)
    assert ours <= 1.5 * meta


FAMILY = {
    "taps": tiny_config(depth=2, img_size=48, window_size=3, taps=(0, 1)),
    "strided": tiny_config(
        depth=1, img_size=48, window_size=3, global_attn_indexes=(), strided_chans=(24, 40)
    ),
    "readout": tiny_config(
        depth=1, img_size=24, patch_size=8, window_size=3, global_attn_indexes=(0,), readout_chans=3
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_in_fp16(name: str) -> None:
    config = FAMILY[name]
    parameters = random_parameters(config, 3, decoder=False)
    x = torch.randn(2, 3, config.img_size, config.img_size, generator=torch.manual_seed(7))
    encoder = FusedImageEncoder(config, parameters.encoder(), device=DEVICE, max_batch_size=2)
    out = encoder(x.to(DEVICE)).cpu()
    assert out.dtype == torch.float32 and out.shape == (2, *config.output_shape)
    reference = family_reference(name, parameters, x.double())
    own = family_reference(name, parameters, x.half())
    for part in split_taps(torch.cat([out, reference, own]), config) if config.taps else ():
        ours, exact, half = part.split(2)
        assert relative_l2(ours, exact) <= 1.5 * relative_l2(half, exact)
    assert relative_l2(out, reference) <= 1.5 * relative_l2(own, reference)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper_stand_ins.put_in_place(monkeypatch)


FP8_PLANS = {
    "all": LINEARS,
    **{name: (name,) for name in LINEARS},
    **{f"all but {name}": tuple({*LINEARS} - {name}) for name in LINEARS},
}


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", FP8_PLANS)
def test_hoppers_trunk_with_e4m3(name: str) -> None:
    """Any of a block's linears: the roundings of e4m3, one in 40 each, and no more."""
    config = tiny_config(embed_dim=256, num_heads=4, depth=3, img_size=256, window_size=14)
    parameters = random_parameters(config, 3, decoder=False)
    patches = torch.randn(256, 768, generator=torch.manual_seed(7)).half()
    ones = torch.ones(3, 256)
    plan = Fp8Plan(
        frozenset((block, linear) for block in range(3) for linear in FP8_PLANS[name]),
        residual_scale=torch.exp2(torch.arange(3 * 2 * 256) % 4.0).view(3, 2, 256),
        attended_scale=ones * torch.exp2(torch.arange(256) % 5.0),
        hidden_scale=32 * ones[:, 0],
    )
    streams = [
        hopper.HopperTrunk(
            EncoderParameters(
                config, parameters.encoder(), torch.float16, torch.device("cpu"), fp8
            ),
            1,
        )(patches, 1, {})
        for fp8 in (None, plan)
    ]
    assert 1e-3 < relative_l2(streams[1], streams[0]) < 0.06


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("tap", [0, 1])
def test_hoppers_trunk_gives_taps(tap: int) -> None:
    config = tiny_config(
        embed_dim=256, num_heads=4, depth=2, img_size=256, window_size=14, taps=(tap,)
    )
    assert hopper.HopperTrunk.supports(config)
    parameters = random_parameters(config, 3, decoder=False)
    packed = EncoderParameters(config, parameters.encoder(), torch.float16, torch.device("cpu"))
    trunk, end = hopper.HopperTrunk(packed, 1), End(packed, 1)
    x = torch.randn(1, 3, 256, 256, generator=torch.manual_seed(7))
    patches = torch.nn.functional.unfold(x, 16, stride=16)[0].t().half().contiguous()
    stream = trunk(patches, 1, end.taps(1))
    found = split_taps(end(torch.zeros(1, 256, 16, 16)), config)[1]
    _, blocks = with_taps(parameters, x)
    assert relative_l2(found, blocks[tap]) < 0.01
    last = stream.float().view(1, 16, 16, 256).permute(0, 3, 1, 2)
    assert relative_l2(last, blocks[1]) < 0.01


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("config", "batch"),
    [(vit_b(), 2), (vit_l(), 1), (vit_h(), 1)],
    ids=["vit_b-batch2", "vit_l", "vit_h"],
)
@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU")
def test_full_size_encoders(config: EncoderConfig, batch: int, precision: str) -> None:
    ours, meta = errors(config, precision, batch, torch.float32)
    assert ours <= 1.5 * meta


def test_it_says_what_computes() -> None:
    config = tiny_config(depth=1, img_size=64, window_size=3)
    tensors = random_parameters(config, 0).encoder()
    encoders = [FusedImageEncoder(config, tensors, p, DEVICE) for p in ("fp16", "bf16", "fp16")]
    assert all(isinstance(encoder, ImageEncoder) for encoder in encoders)
    half, bfloat, again = (encoder.computed_by for encoder in encoders)
    assert half == again == bfloat.replace("bf16", "fp16")
    assert half.startswith("cuda fp16 portable ") and half.endswith(kernels_digest())


def test_calls_do_not_share_their_output() -> None:
    config = tiny_config(depth=2, img_size=64, window_size=3)
    encoder = FusedImageEncoder(
        config, random_parameters(config, 0).encoder(), device=DEVICE, max_batch_size=2
    )
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    first = encoder(x[:1])
    kept = first.clone()
    pair = encoder(x[1:])
    assert torch.equal(first, kept)
    assert not torch.equal(pair[0], pair[1])
    # A smaller batch after a larger one sees nothing of it.
    torch.testing.assert_close(encoder(x[:1]), kept, rtol=0, atol=0)


def test_tables_of_another_length_are_interpolated_as_by_meta() -> None:
    from segment_anything.modeling.image_encoder import get_rel_pos

    table = torch.randn(27, 16, generator=torch.Generator().manual_seed(0))
    resized = resize_rel_pos(table, 9)
    distance = torch.arange(9)[:, None] - torch.arange(9)[None] + 8
    torch.testing.assert_close(resized[distance], get_rel_pos(9, 9, table), rtol=0, atol=0)


def test_what_is_not_supported_raises_one_line() -> None:
    config = tiny_config(depth=1)
    tensors = random_parameters(config, 0).encoder()

    def refused(match: str, changed: EncoderConfig = config, **options: object) -> None:
        with pytest.raises(EngineError, match=match) as error:
            FusedImageEncoder(changed, tensors, **{"device": DEVICE, **options})  # type: ignore[arg-type]
        assert "\n" not in str(error.value)

    refused("not in fp32", precision="fp32")
    refused("max_batch_size", max_batch_size=0)
    refused("head dimension 8", dataclasses.replace(config, num_heads=4))
    refused("heads of 9 to 16 channels", dataclasses.replace(config, depth=2, head_dims=(9, 16)))
    refused("MLPs of 24 to 128", dataclasses.replace(config, depth=2, mlp_dims=(24, 128)))
    refused("grid of 160", dataclasses.replace(config, img_size=2560))
    refused("window size 20", dataclasses.replace(config, window_size=20, global_attn_indexes=()))

    encoder = FusedImageEncoder(config, tensors, device=DEVICE)
    for shape in ((1, 3, 64, 64), (2, 3, 128, 128), (0, 3, 128, 128), (3, 128, 128), ()):
        with pytest.raises(InputError):
            encoder(torch.zeros(shape, device=DEVICE))
    with pytest.raises(InputError, match="float32"):
        encoder(torch.zeros(1, 3, 128, 128, dtype=torch.float16, device=DEVICE))


def test_parameters_may_be_stored_in_half() -> None:
    config = tiny_config(depth=1, img_size=64, window_size=3)
    tensors = random_parameters(config, 0).encoder()
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    outputs = [FusedImageEncoder(config, t, device=DEVICE)(x) for t in (tensors, half)]
    assert relative_l2(outputs[1], outputs[0]) < 2e-3

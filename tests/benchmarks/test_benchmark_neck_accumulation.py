"""Sums that are rounded on the way, by hand; and the neck with sums in fp32, which is torch's."""

import sys
from pathlib import Path

import torch
from oracle import meta_encoder, relative_l2, tiny_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.neck_accumulation import STEP, embed, exact, product  # noqa: E402


def test_a_sum_in_fp16_stops_where_one_more_is_less_than_half_a_step() -> None:
    ones = torch.ones(1, 4096)
    assert product(ones, ones, None).item() == 4096
    assert product(ones, ones, 1).item() == 2048  # 2048 + 1 is a tie, which goes to even
    assert product(ones, ones, 4).item() == 4096  # 2048 + 4, twice the step of 2 there
    assert product(3 * ones[:, :3], ones[:, :3] + 2**-12, 2).item() == 9  # operands are rounded


@torch.inference_mode()
def test_the_neck_is_metas() -> None:
    neck = meta_encoder(tiny_config()).neck
    channels = neck[0].in_channels
    x = torch.randn(1, 9, 5, channels, generator=torch.Generator().manual_seed(3)).half().float()
    reference = neck(x.permute(0, 3, 1, 2))
    assert relative_l2(exact(neck, x), reference) < 1e-6
    in_fp32 = relative_l2(embed(neck, x, (None, None)), reference)
    in_fp16 = relative_l2(embed(neck, x, (STEP, STEP)), reference)
    assert in_fp32 < 1e-3 < in_fp16 < 1e-2

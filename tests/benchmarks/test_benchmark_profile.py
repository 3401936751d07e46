"""How the profile tells launches apart, and what it charges them: no GPU needed."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import triton_kernels  # noqa: F401 (before the kernels: it chooses Triton's interpreter)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import profile_encoder
from benchmarks.profile_encoder import Launch, breakdown, charges, rows, stages, work
from samtrt.checkpoints.config import vit_h
from samtrt.errors import SamtrtError

COPY = "Memcpy DtoD (Device -> Device)"
ADD = "void at::native::elementwise_kernel<128, 2, …>(int)"
GEMM = "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT"
CONV = "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_nhwckrsc_nhwc"
NECK = (GEMM, "_layer_norm_kernel", CONV, "_layer_norm_to_nchw_kernel", COPY)
HOPPER = (
    *(COPY, "_patchify_kernel", "linear"),
    *("linear", "window_attention", "linear", "linear", "linear"),
    *("linear", "global_attention", "linear", "linear", "linear"),
    *NECK,
)
SPIN = "at::cuda::(anonymous namespace)::spin_kernel(long)"


def test_hoppers_launches_are_told_by_their_place() -> None:
    assert stages(HOPPER, 2) == [
        *("copies", "patchify", "patch embedding"),
        *("qkv", "window attention", "proj", "lin1", "lin2"),
        *("qkv", "global attention", "proj", "lin1", "lin2"),
        *("neck", "neck", "neck", "neck", "copies"),
    ]


@pytest.mark.parametrize("fused", [True, False])
def test_portable_launches_are_told_by_their_place(fused: bool) -> None:
    lin1, expected = (
        (["_linear_gelu_kernel"], ["lin1"]) if fused else ([GEMM, "_gelu_kernel"], ["lin1", "GELU"])
    )
    names = [COPY, "_patchify_kernel", ADD, GEMM]
    names += ["_layer_norm_kernel", "Memset (Device)", GEMM, "_window_attention_kernel", GEMM]
    names += ["_layer_norm_kernel", *lin1, GEMM]
    names += ["_layer_norm_kernel", GEMM, "_relative_positions_kernel", "_global_attention_kernel"]
    names += [GEMM, "_layer_norm_kernel", *lin1, GEMM, *NECK]
    assert stages(names, 2) == [
        *("copies", "patchify", "copies", "patch embedding"),
        *("LayerNorm", "copies", "qkv", "window attention", "proj", "LayerNorm", *expected, "lin2"),
        *("LayerNorm", "qkv", "relative positions", "global attention", "proj"),
        *("LayerNorm", *expected, "lin2"),
        *("neck", "neck", "neck", "neck", "copies"),
    ]


def test_a_split_product_is_one_stage() -> None:
    names = ["_window_attention_kernel", GEMM, "void cublasLt::splitKreduce_kernel<…>", GEMM]
    assert stages(names, 2) == ["window attention", "proj", "proj", "lin1"]


def test_overlapping_launches_are_charged_once() -> None:
    """A launch that starts early waits for the one before it; a gap goes to the one after it."""
    replay = [Launch(10, 20, "a"), Launch(18, 27, "b"), Launch(25, 26, "c"), Launch(30, 34, "d")]
    assert charges(replay) == [10, 7, 0, 7]
    assert sum(charges(replay)) == 34 - 10


def launches(kernels: tuple[str, ...], replays: int, slow: int = -1) -> list[Launch]:
    """Replays far apart in which launch i ends 1 µs after the last; replay ``slow`` takes 5."""
    result = []
    for replay in range(replays):
        start, step = replay * 30_000.0, 5.0 if replay == slow else 1.0
        result.append(Launch(start - 200, start, SPIN))
        for i, kernel in enumerate(kernels):
            result.append(Launch(start + max(0, i - 0.5) * step, start + (i + 1) * step, kernel))
    return result


def test_a_call_is_the_median_of_its_replays() -> None:
    times = breakdown([*launches(HOPPER, 3, slow=1)][::-1], 2)  # in any order
    assert Counter({stage: len(each) for stage, each in times.items()}) == Counter(
        stages(HOPPER, 2)
    )
    assert all(each == pytest.approx([1.0] * len(each)) for each in times.values())
    assert sum(map(sum, times.values())) == pytest.approx(len(HOPPER))


def test_lost_events_are_an_error() -> None:
    for events in (launches(HOPPER, 3)[:-1], [], [Launch(0, 1, SPIN)]):
        with pytest.raises(SamtrtError, match="lost events"):
            breakdown(events, 2)


def test_work_of_vit_h() -> None:
    config = vit_h()
    needs = work(config, 1)
    windows = config.depth - 4
    blocks = sum(needs[name][0] for name in ("qkv", "proj", "lin1", "lin2")) * config.depth
    attention = windows * needs["window attention"][0] + 4 * needs["global attention"][0]
    # An image without padded tokens takes 5.65 TFLOP (docs/performance.md), the neck 0.01 of them.
    assert (blocks + attention + needs["patch embedding"][0]) / 1e12 == pytest.approx(
        5.65, abs=0.03
    )
    # 196 keys twice and 14 + 14 table rows, 1280 channels, a multiply and an add.
    assert needs["window attention"][0] == 2 * 4096 * 1280 * (196 * 2 + 28)
    assert work(config, 4)["lin1"][0] == 4 * needs["lin1"][0]


def test_shares_are_of_the_nearer_ceiling() -> None:
    times = {"qkv": [40.0, 60.0], "copies": [5.0], "LayerNorm": [10.0]}
    needs = {"qkv": (25e9, 1e6), "LayerNorm": (0.0, 20e6)}
    found = rows(times, needs, flop_ceiling=1000.0, byte_ceiling=4.0)
    assert [row["stage"] for row in found] == ["qkv", "LayerNorm", "copies"]
    assert [row["floor_us"] for row in found] == [25.0, 5.0, 0.0]
    assert [row["share_of_ceiling"] for row in found] == [0.5, 0.5, 0.0]
    assert found[0]["tflops"] == 500 and found[1]["tbs"] == 2
    assert "| 50.0 |" in " ".join(profile_encoder.table(found).split())

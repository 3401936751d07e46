"""Where the encoder's time goes: every launch of one forward, with its share of the GPU's ceiling.

    python benchmarks/profile_encoder.py --model vit_h --output benchmarks/results/h200_kernels.json

The times come from PyTorch's profiler over single calls on a rested GPU (benchmarks/timing.py).
Launches overlap: one may start while the one before it drains. So each is charged the time from the
end of the launch before it to its own end, and the charges add up to the time of the call.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import (
    PAUSE,
    PROTOCOLS,
    SPIN,
    graph_microseconds,
    single_milliseconds,
)
from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.choice import CUDA_PRECISIONS
from samtrt.encoders.cuda import FusedImageEncoder
from samtrt.encoders.cuda.calibration import calibrated_plan
from samtrt.errors import SamtrtError
from samtrt.files import write_json
from samtrt.reports.benchmarking import environment, markdown_table

REPLAYS = 10
SPIN_KERNEL = "spin_kernel"  # torch.cuda._sleep: it stands before each replay
# Kernels that do one thing, wherever they stand.
NAMED = {
    "_patchify_kernel": "patchify",
    "_layer_norm_kernel": "LayerNorm",
    "_window_attention_kernel": "window attention",
    "window_attention": "window attention",
    "_relative_positions_kernel": "relative positions",
    "_global_attention_kernel": "global attention",
    "global_attention": "global attention",
    "_linear_gelu_kernel": "lin1",
    "_gelu_kernel": "GELU",
}
# Any other kernel is a product (`linear`, cuBLAS) unless its name has one of these.
COPIES = ("Memset", "Memcpy", "elementwise")
# Which product it is, is told by the step before it; a qkv after the last block is the neck.
NEXT_PRODUCT = {
    "patchify": "patch embedding",
    "patch embedding": "qkv",
    "window attention": "proj",
    "global attention": "proj",
    "proj": "lin1",
    "lin1": "lin2",
    "lin2": "qkv",
}
ATTENTIONS = ("window attention", "global attention")


@dataclass(frozen=True)
class Launch:
    """A kernel's time on the GPU, in microseconds."""

    start: float
    end: float
    kernel: str


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("vit_b", "vit_l", "vit_h"), default="vit_h")
    parser.add_argument("--precision", choices=CUDA_PRECISIONS, default="fp16")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Measured here: TFLOP/s of a large product of random matrices, TB/s of a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = graph_microseconds([lambda: torch.mm(a, b, out=out)])
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copy = graph_microseconds([lambda: target.copy_(source)])
    return 2 * 8192**3 / product / 1e6, 2 * source.nbytes / copy / 1e6


def work(config: EncoderConfig, batch: int) -> dict[str, tuple[float, float]]:
    """FLOP and least bytes of one launch of each stage."""
    c, side, tokens = config.embed_dim, config.grid_size, batch * config.grid_size**2

    def linear(n: int, k: int, reads: int = 0) -> tuple[float, float]:
        return 2.0 * tokens * n * k, 2.0 * (tokens * (n + k + reads) + n * k)

    def attention(span: int) -> tuple[float, float]:
        # Real queries alone. Each meets span² keys (a padded one has its share of the softmax) in
        # q·kᵀ and in weights · V, and span rows of each table of relative positions.
        return 2.0 * tokens * c * (2 * span**2 + 2 * span), 2.0 * tokens * 4 * c

    return {
        "patch embedding": linear(c, 3 * config.patch_size**2, c),
        "LayerNorm": (0.0, 4.0 * tokens * c),
        "qkv": linear(3 * c, c),
        "proj": linear(c, c, c),
        "lin1": linear(config.mlp_dim, c),
        "lin2": linear(c, config.mlp_dim, c),
        "window attention": attention(config.window_size),
        "global attention": attention(side),
    }


def stages(kernels: Sequence[str], depth: int) -> list[str]:
    """What each launch of a forward does, from the kernels' names in their order."""
    result = []
    before, attentions = "", 0
    for kernel in kernels:
        if any(part in kernel for part in COPIES):
            stage = "copies"
        elif "splitKreduce" in kernel:  # the second half of cuBLAS's product before it
            stage = before
        elif before == "neck":
            stage = "neck"
        elif kernel in NAMED:
            stage = NAMED[kernel]
        else:
            stage = NEXT_PRODUCT.get(before, "other")
            if stage == "qkv" and attentions == depth:
                stage = "neck"
        attentions += stage in ATTENTIONS
        if stage in NEXT_PRODUCT or stage == "neck":
            before = stage
        result.append(stage)
    return result


def replays(launches: Sequence[Launch]) -> list[list[Launch]]:
    """The launches of each replay: those after a spin."""
    result: list[list[Launch]] = []
    for launch in sorted(launches, key=lambda launch: launch.start):
        if SPIN_KERNEL in launch.kernel:
            result.append([])
        elif result:
            result[-1].append(launch)
    return result


def charges(replay: Sequence[Launch]) -> list[float]:
    """Microseconds of each launch, from the end of the one before it to its own end."""
    result = []
    clock = replay[0].start
    for launch in replay:
        result.append(max(0.0, launch.end - clock))
        clock = max(clock, launch.end)
    return result


def breakdown(launches: Sequence[Launch], depth: int) -> dict[str, list[float]]:
    """Stage → microseconds of each of its launches in one call, medians over the replays.

    Raises:
        SamtrtError: the replays are not the same launches.
    """
    every = replays(launches)
    schedules = {tuple(launch.kernel for launch in replay) for replay in every}
    if len(schedules) != 1 or not min(schedules):
        raise SamtrtError(
            f"{len(every)} replays gave {len(schedules)} different schedules, expected one: "
            "the profiler lost events; run it again"
        )
    times = zip(*map(charges, every), strict=True)
    result: dict[str, list[float]] = {}
    for stage, charged in zip(stages(min(schedules), depth), times, strict=True):
        result.setdefault(stage, []).append(statistics.median(charged))
    return result


def profiled(encoder: Callable[[torch.Tensor], object], x: torch.Tensor) -> list[Launch]:
    """Every kernel of ``REPLAYS`` calls on a rested GPU."""
    for _ in range(5):
        encoder(x)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPLAYS):
            time.sleep(PAUSE)
            torch.cuda._sleep(SPIN)
            encoder(x)
            torch.cuda.synchronize()
    return [
        Launch(event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


def rows(
    times: dict[str, list[float]],
    needs: dict[str, tuple[float, float]],
    flop_ceiling: float,
    byte_ceiling: float,
) -> list[dict[str, Any]]:
    """A row a stage, the longest first; ceilings in TFLOP/s and TB/s."""
    result = []
    for stage, launches in sorted(times.items(), key=lambda item: -sum(item[1])):
        each = sum(launches) / len(launches)
        flop, moved = needs.get(stage, (0.0, 0.0))
        floor = max(flop / flop_ceiling, moved / byte_ceiling) / 1e6
        result.append(
            {
                "stage": stage,
                "launches": len(launches),
                "us_each": each,
                "floor_us": floor,
                "ms_total": sum(launches) / 1000,
                "tflops": flop / each / 1e6,
                "tbs": moved / each / 1e6,
                "share_of_ceiling": floor / each,
            }
        )
    return result


def table(found: Sequence[dict[str, Any]]) -> str:
    header = ["stage", "launches", "µs each", "floor", "ms in all", "TFLOP/s", "TB/s"]
    lines = [
        [
            row["stage"],
            f"{row['launches']}",
            f"{row['us_each']:.1f}",
            f"{row['floor_us']:.1f}",
            f"{row['ms_total']:.3f}",
            f"{row['tflops']:.0f}",
            f"{row['tbs']:.2f}",
            f"{row['share_of_ceiling']:.0%}",
        ]
        for row in found
    ]
    return markdown_table([*header, "share of ceiling"], lines)


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("error: this profile needs an NVIDIA GPU, and there is none")
    config: EncoderConfig = getattr(sizes, arguments.model)()
    batch = arguments.batch_size
    tensors = random_parameters(config).encoder()
    x = torch.randn(batch, 3, config.img_size, config.img_size, device="cuda")
    plan = (
        calibrated_plan(config, tensors, [x[:1]], "cuda") if arguments.precision == "fp8" else None
    )
    encoder = FusedImageEncoder(
        config, tensors, arguments.precision, max_batch_size=batch, fp8=plan
    )
    try:
        times = breakdown(profiled(encoder, x), config.depth)
    except SamtrtError as error:
        sys.exit(f"error: {error}")
    call = statistics.median(single_milliseconds([lambda: encoder(x)], 40))
    flop_ceiling, byte_ceiling = ceilings(encoder.dtype)
    found = rows(times, work(config, batch), flop_ceiling, byte_ceiling)
    total = sum(row["ms_total"] for row in found)
    print(table(found))
    print(
        f"\nEach launch is charged from the end of the one before it to its own end. Their sum is "
        f"{total:.3f} ms; a call between CUDA events, without the profiler, {call:.3f} ms. "
        f"{PROTOCOLS['single'].capitalize()}. Ceilings measured in this run: "
        f"{flop_ceiling:.0f} TFLOP/s, {byte_ceiling:.2f} TB/s."
    )
    if arguments.output:
        record = {
            "environment": environment(),
            "command": f"python benchmarks/profile_encoder.py --model {arguments.model} "
            f"--precision {arguments.precision} --batch-size {batch}",
            "protocol": PROTOCOLS["single"],
            "charged": "from the end of the launch before to its own end",
            "model": arguments.model,
            "precision": arguments.precision,
            "batch_size": batch,
            "ceiling_tflops": flop_ceiling,
            "ceiling_tbs": byte_ceiling,
            "sum_ms": total,
            "call_ms": call,
            "stages": found,
        }
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()

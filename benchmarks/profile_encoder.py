"""Where the encoder's time goes: every launch of one forward, with its share of the GPU's ceiling.

    python benchmarks/profile_encoder.py --model vit_h --output benchmarks/results/h200_kernels.json

The times come from PyTorch's profiler over replays of the captured graph.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import graph_microseconds
from samtrt import config as sizes
from samtrt.checkpoint import random_parameters
from samtrt.config import EncoderConfig
from samtrt.files import write_json
from samtrt.fused import FusedImageEncoder
from samtrt.reports.benchmarking import environment, markdown_table

REPLAYS = 10
# A launch is told by its kernel name; what lies between two of these is cuBLAS, told by place.
NAMED = {
    "_patchify_kernel": "patchify",
    "_layer_norm_kernel": "layer_norm",
    "_window_attention_kernel": "window attention",
    "_relative_positions_kernel": "relative positions",
    "_global_attention_kernel": "global attention",
    "_linear_gelu_kernel": "lin1 + gelu",
    "_layer_norm_to_nchw_kernel": "layer_norm to nchw",
}
AFTER = {
    "patchify": "patch embedding",
    "layer_norm": "qkv",
    "window attention": "proj",
    "global attention": "proj",
    "lin1 + gelu": "lin2",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("vit_b", "vit_l", "vit_h"), default="vit_h")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Measured here: TFLOP/s of a large product of random matrices, TB/s of a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = graph_microseconds([lambda: torch.mm(a, b, out=out)] * 4, 10)
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copy = graph_microseconds([lambda: target.copy_(source)] * 2, 10)
    return 2 * 8192**3 / product / 1e6, 2 * source.nbytes / copy / 1e6


def work(config: EncoderConfig, batch: int) -> dict[str, tuple[float, float]]:
    """FLOP and least bytes of one launch of each stage."""
    c, tokens = config.embed_dim, batch * config.grid_size**2
    window = config.window_size**2

    def linear(n: int, k: int, reads: int = 0) -> tuple[float, float]:
        return 2.0 * tokens * n * k, 2.0 * (tokens * (n + k + reads) + n * k)

    attention = 2.0 * tokens * 4 * c
    return {
        "patch embedding": linear(c, 3 * config.patch_size**2, c),
        "layer_norm": (0.0, 4.0 * tokens * c),
        "qkv": linear(3 * c, c),
        "proj": linear(c, c, c),
        "lin1 + gelu": linear(config.mlp_dim, c),
        "lin2": linear(c, config.mlp_dim, c),
        "window attention": (4.0 * tokens * window * c, attention),
        "global attention": (4.0 * tokens * config.grid_size**2 * c, attention),
    }


def stages(events: list[tuple[float, float, str]]) -> dict[str, tuple[float, int]]:
    """Microseconds and launches of each stage, from (start, duration, kernel name)."""
    result: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    before = ""
    for _, duration, name in sorted(events):
        stage = next((NAMED[key] for key in NAMED if name.startswith(key)), "")
        if stage:
            before = stage
        else:
            stage = AFTER.get(before, "copies and neck")
            if "Memset" in name:  # some of cuBLASLt's algorithms clear a counter first
                stage = "cuBLASLt's memsets"
            elif "Memcpy" in name or "elementwise" in name or "conv" in name.lower():
                stage = "copies and neck"
        total, count = result[stage]
        result[stage] = (total + duration, count + 1)
    return result


def main() -> None:
    arguments = parse_arguments()
    config: EncoderConfig = getattr(sizes, arguments.model)()
    batch = arguments.batch_size
    encoder = FusedImageEncoder(
        config, random_parameters(config).encoder(), arguments.precision, max_batch_size=batch
    )
    x = torch.randn(batch, 3, config.img_size, config.img_size, device="cuda")
    for _ in range(5):
        encoder(x)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPLAYS):
            encoder(x)
        torch.cuda.synchronize()
    events = [
        (event.time_range.start, event.time_range.elapsed_us(), event.name)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    flop_ceiling, byte_ceiling = ceilings(encoder.dtype)
    needs = work(config, batch)
    record: dict[str, Any] = {
        "environment": environment(),
        "model": arguments.model,
        "precision": arguments.precision,
        "batch_size": batch,
        "ceiling_tflops": flop_ceiling,
        "ceiling_tbs": byte_ceiling,
        "stages": [],
    }
    rows = []
    for stage, (total, count) in sorted(stages(events).items(), key=lambda item: -item[1][0]):
        launches = count / REPLAYS
        each = total / count
        flop, moved = needs.get(stage, (0.0, 0.0))
        tflops, tbs = flop / each / 1e6, moved / each / 1e6
        share = max(tflops / flop_ceiling, tbs / byte_ceiling)
        record["stages"].append(
            {
                "stage": stage,
                "launches": launches,
                "us_each": each,
                "ms_total": total / REPLAYS / 1000,
                "tflops": tflops,
                "tbs": tbs,
                "share_of_ceiling": share,
            }
        )
        rows.append(
            [
                stage,
                f"{launches:g}",
                f"{each:.1f}",
                f"{total / REPLAYS / 1000:.3f}",
                f"{tflops:.0f}",
                f"{tbs:.2f}",
                f"{share:.0%}",
            ]
        )
    print(f"ceilings: {flop_ceiling:.0f} TFLOP/s, {byte_ceiling:.2f} TB/s")
    header = ["stage", "launches", "us each", "ms in all", "TFLOP/s", "TB/s", "share of ceiling"]
    print(markdown_table(header, rows))
    print(f"sum {sum(row['ms_total'] for row in record['stages']):.3f} ms")
    if arguments.output:
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()

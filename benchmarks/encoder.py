"""Checks, then times the image encoder and its peers on one GPU, and writes a record.

    python benchmarks/encoder.py --models vit_h --output benchmarks/results/h200.json

A row whose output is too far from Meta's code in float64 is refused: it gets an error, not a time.
The peers are segment_anything in eager mode, torch.compile(mode="max-autotune") of it, and
segment_anything_fast where it is installed; the last two compile for minutes.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.timing import event_milliseconds
from samtrt import config as sizes
from samtrt.checkpoint import Parameters, random_parameters
from samtrt.config import EncoderConfig
from samtrt.files import write_json
from samtrt.fused import FusedImageEncoder
from samtrt.packing import write_packed
from samtrt.reports.benchmarking import Timing, environment, markdown_table
from samtrt.reports.peers import encoder_arguments, meta_image_encoder

INPUTS = 6  # distinct pictures, taken in turn
CHECKED = 1  # of them compared with float64
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Ours may be so many times as far from float64 as Meta's own code in the same precision.
ERROR_RATIO = 2.0
# From packed parameters on disk to the first embedding, in a process of its own.
FIRST_EMBEDDING = """
import sys
import torch
from samtrt.config import EncoderConfig
from samtrt.fused import FusedImageEncoder
from samtrt.packing import read_packed
import json
config = EncoderConfig.from_json(json.loads(sys.argv[2]))
encoder = FusedImageEncoder(config, read_packed(sys.argv[1]), sys.argv[3])
out = encoder(torch.zeros(1, 3, config.img_size, config.img_size, device="cuda"))
assert out.isfinite().all().item()
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["vit_h"], choices=("vit_b", "vit_l", "vit_h")
    )
    parser.add_argument("--precisions", nargs="+", default=["fp16"], choices=("fp16", "bf16"))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["eager-fp16"],
        choices=("eager-fp32", "eager-fp16", "compile-fp16", "compile-bf16", "fast-bf16"),
    )
    parser.add_argument("--runs", type=int, default=100, help="timed calls a row")
    parser.add_argument("--no-startup", action="store_true", help="skip the start-up times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON record to write")
    return parser.parse_args()


def meta_encoder(config: EncoderConfig, parameters: Parameters, dtype: torch.dtype) -> Any:
    with torch.device("cuda"):  # where its initialisation takes no time
        encoder = meta_image_encoder(config)
    tensors = {name: torch.from_numpy(t) for name, t in parameters.encoder().items()}
    encoder.load_state_dict(tensors)
    return encoder.to(dtype)


def peer(name: str, config: EncoderConfig, parameters: Parameters) -> Callable[[Tensor], Tensor]:
    """A contestant: takes and returns float32, as ours does."""
    kind, precision = name.split("-")
    dtype = DTYPES[precision]
    encoder = meta_encoder(config, parameters, dtype)
    if kind == "fast":
        encoder = segment_anything_fast_encoder(config, parameters, dtype)
    if kind in ("compile", "fast"):
        encoder = torch.compile(encoder, mode="max-autotune")
    return lambda x: encoder(x.to(dtype)).float()


def segment_anything_fast_encoder(
    config: EncoderConfig, parameters: Parameters, dtype: torch.dtype
) -> Any:
    """``segment_anything_fast``'s encoder: Meta's with its fused attention for rel_pos."""
    from segment_anything_fast.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(**encoder_arguments(config))
    encoder.load_state_dict({k: torch.from_numpy(v) for k, v in parameters.encoder().items()})
    return encoder.eval().to("cuda", dtype)


def without_output(options: list[str]) -> list[str]:
    """Command-line options without ``--output`` and its value: where a record lies is no news."""
    if "--output" not in options:
        return options
    place = options.index("--output")
    return options[:place] + options[place + 2 :]


def relative_l2(output: Tensor, reference: Tensor) -> float:
    return float((output.double() - reference).norm() / reference.norm())


class ModelBenchmark:
    """All rows of one model: the pictures, the float64 reference, Meta's own errors."""

    def __init__(self, model: str, arguments: argparse.Namespace) -> None:
        self.model = model
        self.arguments = arguments
        self.config: EncoderConfig = getattr(sizes, model)()
        self.parameters = random_parameters(self.config, arguments.seed)
        generator = torch.Generator("cuda").manual_seed(arguments.seed + 1)
        size = self.config.img_size
        largest = max(arguments.batch_sizes)
        count = max(INPUTS, largest)
        self.pictures = torch.randn(count, 3, size, size, device="cuda", generator=generator)
        with torch.no_grad():
            encoder = meta_encoder(self.config, self.parameters, torch.float64)
            self.reference = encoder(self.pictures[:CHECKED].double())
            self.meta_errors = {}
            for precision in arguments.precisions:
                encoder = meta_encoder(self.config, self.parameters, DTYPES[precision])
                output = encoder(self.pictures[:CHECKED].to(DTYPES[precision]))
                self.meta_errors[precision] = relative_l2(output, self.reference)
        del encoder
        free_memory()

    def batches(self, size: int) -> list[Tensor]:
        """Different batches of that many pictures, each starting at another picture."""
        count = len(self.pictures)
        return [
            self.pictures[[(first + i) % count for i in range(size)]] for first in range(INPUTS)
        ]

    def row(
        self, name: str, precision: str, batch_size: int, call: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """Checks one contestant on the first picture, then times it."""
        row: dict[str, Any] = {
            "model": self.model,
            "encoder": name,
            "precision": precision,
            "batch_size": batch_size,
        }
        batches = self.batches(batch_size)
        output = call(batches[0])[:CHECKED]
        row["relative_l2"] = relative_l2(output, self.reference)
        meta = self.meta_errors.get(precision)
        row["meta_relative_l2"] = meta
        bound = 1e-3 if meta is None else ERROR_RATIO * meta
        if not row["relative_l2"] <= bound:  # (NaN too)
            row["refused"] = f"relative L2 {row['relative_l2']:.2e} above {bound:.2e}: not timed"
        else:
            calls: list[Callable[[], object]] = [lambda x=x: call(x) for x in batches]
            timing = Timing.of(event_milliseconds(calls, self.arguments.runs, warmup=INPUTS))
            row.update(p50_ms=timing.p50, p90_ms=timing.p90, best_ms=timing.best)
            row["ms_per_image"] = timing.p50 / batch_size
        show(row)
        return row

    def ours(self, precision: str) -> list[dict[str, Any]]:
        rows = []
        for batch_size in self.arguments.batch_sizes:
            free_memory()
            before = torch.cuda.memory_allocated()
            encoder = FusedImageEncoder(
                self.config, self.parameters.encoder(), precision, max_batch_size=batch_size
            )
            weights = sum(v.size for v in self.parameters.encoder().values()) * 2
            encoder(self.pictures[:batch_size])
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            row = self.row("samtrt", precision, batch_size, encoder)
            # The pictures of the rotation are the caller's, and no part of the encoder.
            peak = torch.cuda.max_memory_allocated() - before - weights
            held = sum(batch.nbytes for batch in self.batches(batch_size))
            row["memory_above_weights_mb"] = (peak - held) / 1e6
            rows.append(row)
            del encoder
        if not self.arguments.no_startup:
            rows[0].update(self.start_up(precision))
            print({key: round(rows[0][key], 2) for key in rows[0] if key.startswith("start")})
        return rows

    def start_up(self, precision: str) -> dict[str, float]:
        """Seconds from process start to the first embedding: cold and warm kernel cache."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.engine"
            write_packed(path, self.parameters.encoder(), precision)
            environ = {**os.environ, "TRITON_CACHE_DIR": str(Path(folder) / "cache")}
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                config = str(self.config.to_json()).replace("'", '"')
                subprocess.run(
                    [sys.executable, "-c", FIRST_EMBEDDING, str(path), config, precision],
                    env=environ,
                    check=True,
                    cwd=Path(__file__).resolve().parent.parent,
                )
                seconds.append(time.perf_counter() - start)
        return {"startup_cold_s": seconds[0], "startup_warm_s": min(seconds[1:])}

    def peers(self, name: str) -> list[dict[str, Any]]:
        precision = name.split("-")[1]
        start = time.perf_counter()
        try:
            call = peer(name, self.config, self.parameters)
        except ImportError as error:
            return [{"model": self.model, "encoder": name, "refused": f"not installed: {error}"}]
        rows = []
        with torch.no_grad():
            for batch_size in self.arguments.batch_sizes:
                free_memory()
                call(self.pictures[:batch_size])
                torch.cuda.synchronize()
                first = time.perf_counter() - start
                rows.append(self.row(name, precision, batch_size, call))
                rows[-1]["first_output_s"] = first
                start = time.perf_counter()
        return rows


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def show(row: dict[str, Any]) -> None:
    head = f"{row['model']} {row['encoder']:12s} {row['precision']} batch {row['batch_size']}"
    if "refused" in row:
        print(f"{head}: REFUSED, {row['refused']}", flush=True)
        return
    meta = row["meta_relative_l2"]
    ratio = f" ({row['relative_l2'] / meta:.2f} x Meta's)" if meta else ""
    print(
        f"{head}: p50 {row['p50_ms']:.3f} ms, p90 {row['p90_ms']:.3f}, "
        f"{row['ms_per_image']:.3f} ms/image, relative L2 {row['relative_l2']:.2e}{ratio}",
        flush=True,
    )


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs an NVIDIA GPU, and there is none")
    record: dict[str, Any] = {
        "environment": environment(),
        "note": f"seeded random weights (seed {arguments.seed}), rel_pos and pos_embed too",
        "command": f"python benchmarks/encoder.py {' '.join(without_output(sys.argv[1:]))}",
        "rows": [],
    }
    for model in arguments.models:
        benchmark = ModelBenchmark(model, arguments)
        contestants = [partial(benchmark.ours, precision) for precision in arguments.precisions]
        contestants += [partial(benchmark.peers, name) for name in arguments.peers]
        for contestant in contestants:
            record["rows"] += contestant()
            if arguments.output:  # each time: a peer may compile for minutes and be cut off
                write_json(arguments.output, record)
    rows = [
        [
            row["model"],
            row["encoder"],
            row["precision"],
            str(row["batch_size"]),
            f"{row['ms_per_image']:.2f}",
            f"{row['relative_l2']:.1e}",
        ]
        for row in record["rows"]
        if "p50_ms" in row
    ]
    print(markdown_table(["model", "encoder", "precision", "batch", "ms/image", "error"], rows))


if __name__ == "__main__":
    main()

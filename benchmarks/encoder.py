"""Checks, then times the image encoder and its peers on one GPU, and writes a record.

    python benchmarks/encoder.py --models vit_h --output benchmarks/results/h200.json
    python benchmarks/encoder.py --models vit_h --peers fast-bf16 --append --output …/h200.json

A row is refused, and gets an error instead of a time, if one picture of one batch is too far from
Meta's code in float64 (in fp8: further than a reference in torch that rounds alike), or if an
output differs by a bit from that of an earlier call with the same pictures, before the timing or
after it.
Each row has two times, on a rested GPU and under sustained load (``benchmarks/timing.py``). The
peers are segment_anything in eager mode, torch.compile(mode="max-autotune") of it, and
segment_anything_fast where it is installed; the last two compile for minutes, so they can be added
to a record by a later run. That run measures our batch 1 again, to be compared with.
"""

import argparse
import gc
import math
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.record import Row, join, key, measured, new_run, read_record
from benchmarks.startup import start_up
from benchmarks.timing import PROTOCOLS, Call, measure
from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.choice import CUDA_PRECISIONS
from samtrt.encoders.cuda import FusedImageEncoder
from samtrt.encoders.cuda.calibration import calibrated_plan
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.encoders.cuda.quantisation import Fp8Plan
from samtrt.errors import InputError
from samtrt.files import write_json
from samtrt.kernels.device import resolved
from samtrt.modeling.image_encoder import encoder_arguments
from samtrt.reports.peers import meta_image_encoder

INPUTS = 6  # distinct batches, taken in turn
CALIBRATION = 2  # pictures that the scales of fp8 come from
REPEATS = 3  # calls of each batch before the timing, all with the same output
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Ours may be so many times as far from float64 as Meta's own code in the same precision, or in fp8
# as the reference in torch that rounds by the same plan.
ERROR_RATIO = {"fp16": 2.0, "bf16": 2.0, "fp32": 2.0, "fp8": 1.2}
# segment_anything_fast ships tuned attention for one GPU, the A100: these rows, columns and warps.
FAST_TILES = ((64, 64, 4), (128, 64, 4), (64, 128, 4), (128, 64, 8))


def parse_arguments(options: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["vit_h"], choices=("vit_b", "vit_l", "vit_h")
    )
    parser.add_argument("--precisions", nargs="+", default=["fp16"], choices=CUDA_PRECISIONS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["eager-fp16"],
        choices=("eager-fp32", "eager-fp16", "compile-fp16", "compile-bf16", "fast-bf16"),
    )
    parser.add_argument("--runs", type=int, default=40, help="timed calls a row and protocol")
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.5,
        help="a row and protocol: after these no further call, once there are 12 (slow peers)",
    )
    parser.add_argument("--no-startup", action="store_true", help="skip the start-up times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON record to write")
    parser.add_argument(
        "--append",
        action="store_true",
        help="add to the record at --output the rows that it lacks, and our batch 1 again",
    )
    arguments = parser.parse_args(options)
    if arguments.append and not arguments.output:
        parser.error("--append needs --output, the record to add to")
    return arguments


def relative_l2(output: Tensor, reference: Tensor) -> float:
    return float((output.double() - reference).norm() / reference.norm())


def badness(error: float, of_meta: float) -> float:
    """For a largest one: NaN, which compares with nothing, is worst."""
    return float("inf") if math.isnan(error) else error / of_meta


class ModelBenchmark:
    """All rows of one model: the pictures, their float64 references, Meta's own errors.

    Attributes:
        skipped: rows not to measure, by ``benchmarks.record.key``.
    """

    def __init__(
        self,
        model: str,
        config: EncoderConfig,
        arguments: argparse.Namespace,
        skipped: set[tuple[Any, ...]],
        device: str = "cuda",
    ) -> None:
        self.model, self.config, self.skipped = model, config, skipped
        self.arguments = arguments
        self.device = resolved(device)
        self.parameters = random_parameters(config, arguments.seed)
        self.tensors = {  # moved once, for every contestant
            name: torch.from_numpy(array).to(self.device)
            for name, array in self.parameters.encoder().items()
        }
        generator = torch.Generator(self.device).manual_seed(arguments.seed + 1)
        size = config.img_size
        count = max(INPUTS, *arguments.batch_sizes)
        self.pictures = torch.randn(count, 3, size, size, device=self.device, generator=generator)
        with torch.no_grad():
            self.references = self.meta_outputs(torch.float64)
            self.meta_errors = {}
            wanted = {*arguments.precisions, *map(precision_of, arguments.peers)}
            for precision in wanted - {"fp8"}:
                outputs = self.meta_outputs(DTYPES[precision])
                self.meta_errors[precision] = self.errors(outputs, range(count))
        self.plan: Fp8Plan | None = None
        if "fp8" in wanted:
            # Every linear layer: random weights have no masks that some could be kept for.
            self.plan = calibrated_plan(
                config, self.tensors, self.pictures[:CALIBRATION].split(1), self.device
            )
            reference = Fp8Reference(config, self.tensors, self.plan, self.device)
            outputs = torch.cat([reference(picture) for picture in self.pictures.split(1)])
            self.meta_errors["fp8"] = self.errors(outputs, range(count))
        free_memory()

    def meta_encoder(self, dtype: torch.dtype, make: Any = meta_image_encoder) -> Any:
        """Meta's encoder, or that of ``make(config)``, with the parameters in that type."""
        with torch.device("meta"):  # nothing is allocated or initialised
            encoder = make(self.config)
        encoder.load_state_dict(self.tensors, assign=True)
        return encoder.requires_grad_(False).to(dtype)

    def rows(self) -> Iterator[Row]:
        """Every row, one by one: a peer may compile for minutes and be cut off."""
        ours = (self.ours(precision) for precision in self.arguments.precisions)
        peers = (self.peer(name) for name in self.arguments.peers)
        yield from chain.from_iterable(chain(ours, peers))

    def meta_outputs(self, dtype: torch.dtype) -> Tensor:
        """Of every picture, one by one."""
        encoder = self.meta_encoder(dtype)
        return torch.cat([encoder(picture[None].to(dtype)) for picture in self.pictures])

    def errors(self, outputs: Tensor, pictures: Iterable[int]) -> list[float]:
        """Each output's relative L2 against the float64 one of its picture."""
        return [
            relative_l2(output, self.references[picture])
            for output, picture in zip(outputs, pictures, strict=True)
        ]

    def batches(self, size: int) -> list[list[int]]:
        """Different batches of that many pictures, each starting at another picture."""
        count = len(self.pictures)
        return [[(first + i) % count for i in range(size)] for first in range(INPUTS)]

    def row(
        self,
        name: str,
        precision: str,
        batch_size: int,
        call: Callable[[Tensor], Tensor],
        error_ratio: float | None = None,
    ) -> Row:
        """Checks one contestant on every picture of every batch, again and again; then times it.

        Args:
            error_ratio: in the place of ``ERROR_RATIO``.
        """
        row = self.head(name, precision, batch_size)
        members = self.batches(batch_size)
        batches = [self.pictures[indices] for indices in members]
        outputs = [call(batch).clone() for batch in batches]
        # The picture that is worst, compared with Meta's own error of it.
        meta = self.meta_errors[precision]
        checked = [
            (error, meta[picture])
            for output, indices in zip(outputs, members, strict=True)
            for error, picture in zip(self.errors(output, indices), indices, strict=True)
        ]
        error, of_meta = max(checked, key=lambda pair: badness(*pair))
        row["relative_l2"], row["meta_relative_l2"] = error, of_meta
        bound = (error_ratio or ERROR_RATIO[precision]) * of_meta
        if not error <= bound:  # (NaN too)
            row["refused"] = f"relative L2 {error:.2e} above {bound:.2e}: not timed"
            return row

        def differing() -> int:
            return sum(
                not torch.equal(call(batch), output)
                for batch, output in zip(batches, outputs, strict=True)
            )

        wrong = sum(differing() for _ in range(REPEATS - 1))
        if wrong:
            total = (REPEATS - 1) * len(batches)
            row["refused"] = f"{wrong} of {total} repeated outputs differ: not timed"
            return row
        calls: list[Call] = [lambda x=x: call(x) for x in batches]
        timings = measure(calls, self.arguments.runs, self.arguments.seconds)
        if wrong := differing():
            row["refused"] = f"{wrong} of {len(batches)} outputs differ after the timing"
        else:
            row["timings"] = timings
        return row

    def head(self, name: str, precision: str, batch_size: int) -> Row:
        return {
            "model": self.model,
            "encoder": name,
            "precision": precision,
            "batch_size": batch_size,
        }

    def ours(self, precision: str) -> Iterator[Row]:
        for batch_size in sorted({1, *self.arguments.batch_sizes}):
            is_new = key(self.head("samtrt", precision, batch_size)) not in self.skipped
            if not is_new and batch_size > 1:
                continue  # batch 1 is measured in every run
            free_memory()
            before = torch.cuda.memory_allocated()
            encoder = FusedImageEncoder(
                self.config,
                self.tensors,
                precision,
                self.device,
                max_batch_size=batch_size,
                fp8=self.plan if precision == "fp8" else None,
            )
            torch.cuda.reset_peak_memory_stats()
            encoder(self.pictures[:batch_size])
            weights = self.weight_bytes(precision)
            held = torch.cuda.max_memory_allocated() - before - weights
            row = self.row("samtrt", precision, batch_size, encoder)
            row["weights_mb"] = weights / 1e6
            row["memory_above_weights_mb"] = held / 1e6
            del encoder
            if is_new and batch_size == 1 and not self.arguments.no_startup:
                free_memory()
                plan = self.plan if precision == "fp8" else None
                row.update(start_up(self.config, self.parameters.encoder(), precision, plan))
            yield row

    def weight_bytes(self, precision: str) -> int:
        """Two of each parameter, one where it is in e4m3."""
        halved = self.plan.packed.values() if self.plan is not None and precision == "fp8" else ()
        total = 2 * sum(tensor.numel() for tensor in self.tensors.values())
        return total - sum(packed.weight.numel() for packed in halved)

    def peer(self, name: str) -> Iterator[Row]:
        precision = precision_of(name)
        for batch_size in self.arguments.batch_sizes:
            if key(self.head(name, precision, batch_size)) in self.skipped:
                continue
            free_memory()
            start = time.perf_counter()
            try:
                with torch.no_grad():
                    call = self.make_peer(name)
                    call(self.pictures[:batch_size])
                    torch.cuda.synchronize()
                    first = time.perf_counter() - start
                    row = self.row(name, precision, batch_size, call)
                    row["first_output_s"] = first
            except Exception as error:  # of code that is not ours; the other rows go on
                traceback.print_exc()
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                row = self.head(name, precision, batch_size) | {"refused": reason[:300]}
            yield row

    def make_peer(self, name: str) -> Callable[[Tensor], Tensor]:
        """A contestant: takes and returns float32, as ours does."""
        kind, dtype = name.split("-")[0], DTYPES[precision_of(name)]
        make = segment_anything_fast_encoder if kind == "fast" else meta_image_encoder
        encoder = self.meta_encoder(dtype, make)
        if kind in ("compile", "fast"):
            # Each batch size by itself: the second would make dynamic shapes, and slower code.
            torch.compiler.reset()
            encoder = torch.compile(encoder, mode="max-autotune", dynamic=False)
        return lambda x: encoder(x.to(dtype)).float()


def precision_of(peer: str) -> str:
    return peer.split("-")[1]


def segment_anything_fast_encoder(config: EncoderConfig) -> torch.nn.Module:
    """``segment_anything_fast``'s encoder: Meta's with its fused attention for rel_pos."""
    from segment_anything_fast.modeling import ImageEncoderViT

    shorten_tuning()
    encoder: torch.nn.Module = ImageEncoderViT(**encoder_arguments(config))
    return encoder.eval()


@cache
def shorten_tuning() -> None:
    """Its attention tries 60 launch configurations at the first call, and compiles for minutes."""
    from segment_anything_fast import flash_4

    tune = flash_4._autotune
    flash_4._autotune = lambda options, run: tune([o for o in options if o[:3] in FAST_TILES], run)


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def show(row: Row) -> None:
    head = f"{row['model']} {row['encoder']:12s} {row['precision']} batch {row['batch_size']}"
    if "refused" in row:
        print(f"{head}: REFUSED, {row['refused']}", flush=True)
        return
    times = [
        f"{name} {t['p50_ms']:.3f} (p90 {t['p90_ms']:.3f})" for name, t in row["timings"].items()
    ]
    ratio = row["relative_l2"] / row["meta_relative_l2"]
    print(
        f"{head}: ms {', '.join(times)}; relative L2 {row['relative_l2']:.2e} "
        f"({ratio:.2f} x {'the reference' if row['precision'] == 'fp8' else 'Meta'}'s)",
        flush=True,
    )
    load = row["timings"]["sustained"]
    if load["sm_clock_mhz"]:
        energy = load["power_w"] * load["p50_ms"] / row["batch_size"]
        print(
            f"    under load: {load['sm_clock_mhz']:.0f} MHz, {load['power_w']:.0f} W, "
            f"{energy:.0f} mJ an image",
            flush=True,
        )
    if "startup_cold_s" in row:
        print(f"    start: cold {row['startup_cold_s']:.1f} s, warm {row['startup_warm_s']:.1f} s")


def command_line(options: list[str]) -> str:
    """The command without ``--output``: where a record lies is no news."""
    kept = list(options)
    if "--output" in kept:
        place = kept.index("--output")
        del kept[place : place + 2]
    return shlex.join(["python", "benchmarks/encoder.py", *kept])


def start_record(arguments: argparse.Namespace, run: dict[str, Any]) -> dict[str, Any]:
    """A new record, or the one to add to.

    Raises:
        InputError: this run's rows could not be compared with those of the record.
    """
    note = f"seeded random weights (seed {arguments.seed}), rel_pos and pos_embed too"
    if arguments.append:
        record = read_record(arguments.output)
        join(record, run, note)
        return record
    return {"note": note, "protocols": PROTOCOLS, "runs": [run], "rows": []}


def collect(
    record: dict[str, Any], run: dict[str, Any], rows: Iterable[Row], output: Path | None
) -> list[Row]:
    """Rows into the record, which is written after each; those that were refused."""
    refused = []
    for row in rows:
        record["rows"].append(row | {"run": run["id"]})
        show(row)
        if "refused" in row:
            refused.append(row)
        if output:
            write_json(output, record)
    return refused


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs an NVIDIA GPU, and there is none")
    run = new_run(command_line(sys.argv[1:]))
    try:
        record = start_record(arguments, run)
    except InputError as error:
        sys.exit(f"error: {error}")
    skipped = measured(record)
    refused: list[Row] = []
    for model in arguments.models:
        start = time.perf_counter()
        benchmark = ModelBenchmark(model, getattr(sizes, model)(), arguments, skipped)
        seconds = time.perf_counter() - start
        print(f"{model}: parameters and references in {seconds:.1f} s", flush=True)
        refused += collect(record, run, benchmark.rows(), arguments.output)
        del benchmark
        free_memory()
    print(report.table(record))
    if refused:
        sys.exit(f"error: {len(refused)} rows were refused")


if __name__ == "__main__":
    main()

"""Checks and times the kernels' launch configurations at a model's shapes, on a GPU.

The fastest rows are the defaults of the kernels and of ``samtrt.encoders.cuda``; nothing is
tuned when the encoder starts. Times are of a rested GPU (``benchmarks/timing.py``).

    python benchmarks/tune.py --model vit_h --output tune.json

The kernels for Hopper take seconds each to compile. That needs no GPU: with ``--compile-only`` they
are put into the cache (``$SAMTRT_CACHE_DIR``), which can then be carried to one.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.timing import PROTOCOLS
from benchmarks.tuning import hopper, portable
from benchmarks.tuning.tuner import Tuner
from samtrt.checkpoints import config as sizes
from samtrt.console import track
from samtrt.files import write_json
from samtrt.kernels.hopper.code_cache import cache_folder
from samtrt.reports.benchmarking import environment

SECTIONS = {**hopper.SECTIONS, **portable.SECTIONS}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("vit_b", "vit_l", "vit_h"), default="vit_h")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--shard", help="i/n: run each n-th configuration once, to fill the cache")
    parser.add_argument(
        "--compile-only", action="store_true", help="compile the kernels for Hopper, and end"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    tuner = Tuner(
        getattr(sizes, arguments.model)(),
        arguments.batch_size,
        arguments.precision,
        tuple(map(int, arguments.shard.split("/"))) if arguments.shard else None,
    )
    if arguments.compile_only:
        wanted = list(dict.fromkeys(hopper.programs(tuner.config, tuner.batch, tuner.dtype)))
        for program in track(wanted, "compiling", len(wanted)):
            program.machine_code()
        print(f"{len(wanted)} kernels in {cache_folder()}")
        return
    if not torch.cuda.is_available():
        sys.exit("error: tuning needs an NVIDIA GPU, and there is none")
    torch.manual_seed(0)
    for section in arguments.sections:
        SECTIONS[section](tuner)
        torch.cuda.empty_cache()
    if arguments.output and not tuner.shard:
        record = {
            "environment": environment(),
            "command": f"python benchmarks/tune.py --model {arguments.model} --batch-size "
            f"{arguments.batch_size} --precision {arguments.precision} "
            f"--sections {' '.join(arguments.sections)}",
            "protocol": PROTOCOLS["single"],
            "model": arguments.model,
            "batch_size": arguments.batch_size,
            "precision": arguments.precision,
            "rows": tuner.rows,
        }
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()

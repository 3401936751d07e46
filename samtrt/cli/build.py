"""Builds the image encoder's engine from a parameter folder and checks it against fp32."""

import argparse
from pathlib import Path

from samtrt.cli.options import (
    ATTENTIONS,
    BACKENDS,
    PRECISIONS,
    Options,
    log_to_stderr,
    required,
)


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_params()
    options.add("--output-dir", type=Path, help="the engine folder (default: PARAMS/engine)")
    options.add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what shall run the engine (default: auto, the fastest that runs here)",
    )
    options.add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="default: auto, fp16 on GPUs, and on CPUs bf16 where that is fast and right",
    )
    options.add(
        "--max-batch-size",
        type=int,
        default=1,
        metavar="N",
        help="most pictures in a call (default: 1)",
    )
    options.add(
        "--compute-capability",
        metavar="X.Y",
        help="of the GPU to build for, as 8.9 (TensorRT-RTX; default: this machine's)",
    )
    options.add(
        "--attention",
        choices=ATTENTIONS,
        default="fused",
        help="TensorRT's own attention layer, or matmul-softmax-matmul (default: fused)",
    )
    options.add_pictures(
        "--pictures", "what the engine is compared with fp32 on; without any, two drawn ones"
    )
    options.add(
        "--skip-parity-gate",
        action="store_true",
        help="do not compare the engine with fp32; the sidecar records it",
    )


def run(arguments: argparse.Namespace) -> None:
    """Builds, and prints what was built."""
    from samtrt.building.build import BuildOptions, build_encoder
    from samtrt.checkpoints.parameters import load_parameters

    log_to_stderr()
    params = required(arguments.params, "--params", "a parameter folder")
    output_dir = arguments.output_dir or params / "engine"
    options = BuildOptions(
        arguments.backend,
        arguments.precision,
        arguments.max_batch_size,
        arguments.attention,
        arguments.compute_capability,
        arguments.skip_parity_gate,
    )
    info = build_encoder(load_parameters(params), output_dir, arguments.pictures, options)
    print(info.summary())
    print(f"written to  {output_dir}")

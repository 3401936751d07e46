"""Builds the image encoder's engine from a parameter folder and checks it against fp32."""

import argparse
from pathlib import Path

from samtrt.cli.options import Options, log_to_stderr, required
from samtrt.encoders import ATTENTIONS, BACKENDS, PLUGINS, PRECISIONS
from samtrt.errors import InputError


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_params()
    options.add("--output-dir", type=Path, help="the engine folder (default: PARAMS/engine)")
    options.add(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="what shall run the engine (default: auto, the fastest that runs here)",
    )
    options.add(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="default: auto, fp16 on GPUs, and on CPUs bf16 where that is fast and right; fp8 is "
        "for --backend cuda on an H100 or H200",
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
    options.add(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="the pictures that an fp8 engine's scales come from (default: four drawn ones)",
    )
    options.add(
        "--fp8-keep",
        default="auto",
        metavar="LIST",
        help="linear layers of an fp8 engine that stay in fp16: blocks, or layers as 7.mlp.lin2, "
        "with commas between them, or none (default: auto, those that would fail the parity gate)",
    )
    options.add(
        "--plugins",
        choices=PLUGINS,
        default="none",
        help="what is our kernels in a TensorRT engine: attention or all, on compute capability "
        "9.0 (`samtrt build-plugins` compiles their library); attention-aot, with TensorRT 10.14 "
        "and newer; or none (default)",
    )
    options.add_pictures(
        "--pictures", "what the engine is compared with fp32 on; without any, two drawn ones"
    )
    options.add(
        "--skip-parity-gate",
        action="store_true",
        help="do not compare the engine with fp32; the sidecar records it",
    )
    options.add(
        "--write-network",
        type=Path,
        metavar="DIR",
        help="write the TensorRT network there, with a script that builds it where there is no "
        "torch, in place of an engine (with --precision, --attention and --plugins)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Builds, and prints what was built."""
    from samtrt.building.build import BuildOptions, build_encoder
    from samtrt.checkpoints.parameters import load_parameters

    log_to_stderr()
    params = required(arguments.params, "--params", "a parameter folder")
    if arguments.write_network is not None:
        _write_network(arguments, params)
        return
    output_dir = arguments.output_dir or params / "engine"
    options = BuildOptions(
        arguments.backend,
        arguments.precision,
        arguments.max_batch_size,
        arguments.attention,
        arguments.plugins,
        arguments.compute_capability,
        arguments.skip_parity_gate,
        _calibration(arguments),
        arguments.fp8_keep,
    )
    info = build_encoder(load_parameters(params), output_dir, arguments.pictures, options)
    print(info.summary())
    print(f"written to  {output_dir}")


def _calibration(arguments: argparse.Namespace) -> list[Path]:
    """The pictures to calibrate on."""
    if arguments.calibrate is None:
        return []
    from samtrt.jobs.sources import find_sources

    folder = arguments.calibrate
    if not folder.is_dir():
        raise InputError(f"--calibrate {folder} is no folder; name one with pictures in it")
    places = find_sources([folder]).pictures.values()
    return [place for place in places if isinstance(place, Path)]


def _write_network(arguments: argparse.Namespace, params: Path) -> None:
    from samtrt.building.written_network import SCRIPT, write_network
    from samtrt.checkpoints.parameters import load_parameters

    others = {
        "--output-dir": arguments.output_dir,
        "--compute-capability": arguments.compute_capability,
        "--skip-parity-gate": arguments.skip_parity_gate,
        "--max-batch-size without --plugins": arguments.max_batch_size != 1
        and arguments.plugins == "none",
        "--calibrate": arguments.calibrate,
        "--fp8-keep": arguments.fp8_keep != "auto",
        f"--backend {arguments.backend}": arguments.backend not in ("auto", "tensorrt"),
    }
    given = [flag for flag, value in others.items() if value]
    if given:
        raise InputError(
            f"{', '.join(given)} with --write-network: only --precision, --attention and "
            f"--plugins (with --max-batch-size) say what is written; the rest goes to {SCRIPT} in "
            "that folder"
        )
    directory = arguments.write_network
    precision = "fp16" if arguments.precision == "auto" else arguments.precision
    write_network(
        load_parameters(params),
        directory,
        precision,
        arguments.attention,
        arguments.plugins,
        arguments.max_batch_size,
    )
    plugins = f", plugins: {arguments.plugins}" if arguments.plugins != "none" else ""
    print(f"network     {precision}, {arguments.attention} attention{plugins}")
    print(f"written to  {directory}")
    print(f"build it    python {directory / SCRIPT} --output-dir ENGINE")

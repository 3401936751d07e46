"""Exports the mask decoder of a parameter folder as one ONNX file."""

import argparse
from pathlib import Path

from samtrt.cli.options import Options, required


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_params()
    options.add("--output", type=Path, help="the ONNX file (default: PARAMS/mask_decoder.onnx)")
    options.add(
        "--return-single-mask",
        action="store_true",
        help="one mask a prompt, chosen in the model, instead of all four",
    )


def run(arguments: argparse.Namespace) -> None:
    """Exports, and prints what was written."""
    from samtrt.checkpoints.parameters import load_parameters
    from samtrt.decoders.export import export_decoder

    params = required(arguments.params, "--params", "a parameter folder")
    output = arguments.output or params / "mask_decoder.onnx"
    parameters = load_parameters(params)
    export_decoder(parameters, output, arguments.return_single_mask)
    print(f"mask decoder  {'one mask' if arguments.return_single_mask else 'four masks'} a prompt")
    print(f"file size     {output.stat().st_size / 1e6:.1f} MB")
    if parameters.note:
        print(f"note          {parameters.note}")
    print(f"written to    {output}")

"""Exports the mask decoder of a parameter folder as one ONNX file."""

import argparse
from pathlib import Path

from samtrt.cli.options import Options, required
from samtrt.decoders.contract import CONTRACTS


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_params()
    options.add("--output", type=Path, help="the ONNX file (default: PARAMS/mask_decoder.onnx)")
    options.add(
        "--return-single-mask",
        action="store_true",
        help="one mask a prompt, chosen in the model, instead of all four",
    )
    options.add(
        "--contract",
        choices=CONTRACTS,
        default="samtrt",
        help="inputs and outputs: samtrt's (default), those of Meta's export_onnx_model.py with "
        "masks at the picture's size, those of CVAT's page, or, of a SAM-HQ, its own script's",
    )
    options.add(
        "--use-stability-score",
        action="store_true",
        help="scores are the masks' stability (contract meta or cvat)",
    )
    options.add(
        "--return-extra-metrics",
        action="store_true",
        help="the masks' stability and area as well (contract meta or sam_hq)",
    )
    options.add(
        "--gelu-approximate",
        action="store_true",
        help="GELU by tanh, for runtimes without erf",
    )
    options.add(
        "--multimask-output",
        action="store_true",
        help="the best of SAM's masks 1 to 3 with the HQ token's, not mask 0 (contract sam_hq)",
    )
    options.add(
        "--hq-token-only",
        action="store_true",
        help="the HQ token's mask alone (contract sam_hq)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Exports, and prints what was written."""
    from samtrt.checkpoints.parameters import load_parameters
    from samtrt.decoders.export import DecoderExport, export_decoder

    options = DecoderExport(
        arguments.contract,
        arguments.return_single_mask,
        arguments.use_stability_score,
        arguments.return_extra_metrics,
        arguments.gelu_approximate,
        arguments.multimask_output,
        arguments.hq_token_only,
    )
    params = required(arguments.params, "--params", "a parameter folder")
    output = arguments.output or params / "mask_decoder.onnx"
    parameters = load_parameters(params)
    export_decoder(parameters, output, options=options)
    print(f"mask decoder  {'one mask' if options.has_one_mask else 'four masks'} a prompt")
    if options.contract != "samtrt":
        print(f"contract      {options.contract}: {', '.join(options.output_names)}")
    print(f"file size     {output.stat().st_size / 1e6:.1f} MB")
    if parameters.note:
        print(f"note          {parameters.note}")
    print(f"written to    {output}")

"""Exports the mask decoder of a parameter folder as one ONNX file."""

import argparse
import sys
from pathlib import Path

from samtrt.checkpoints.parameters import load_parameters
from samtrt.console import run_script
from samtrt.decoders.export import export_decoder

MODELS = Path(__file__).resolve().parent / "sam_models"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--params",
        type=Path,
        default=MODELS / "sam_demo",
        help="parameter folder made by params_convert.py (default: sam_models/sam_demo)",
    )
    parser.add_argument(
        "--output", type=Path, help="the ONNX file (default: PARAMS/mask_decoder.onnx)"
    )
    parser.add_argument(
        "--return-single-mask",
        action="store_true",
        help="one mask a prompt, chosen in the model, instead of all four",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output or arguments.params / "mask_decoder.onnx"
    parameters = load_parameters(arguments.params)
    export_decoder(parameters, output, arguments.return_single_mask)
    print(f"mask decoder  {'one mask' if arguments.return_single_mask else 'four masks'} a prompt")
    print(f"file size     {output.stat().st_size / 1e6:.1f} MB")
    if parameters.note:
        print(f"note          {parameters.note}")
    print(f"written to    {output}")


if __name__ == "__main__":
    sys.exit(run_script(main))

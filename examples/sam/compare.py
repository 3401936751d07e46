"""Compares the image encoder with Meta's PyTorch implementation on the same parameters."""

import argparse
import sys
from pathlib import Path

import torch

from samtrt.building.accuracy import load_pictures
from samtrt.checkpoints.parameters import load_parameters
from samtrt.console import progress_steps, run_script
from samtrt.files import write_json
from samtrt.reports.benchmarking import describe, environment
from samtrt.reports.comparison import accuracy_table, measure_accuracy
from samtrt.reports.contestants import meta_contestants, our_contestants

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--params",
        type=Path,
        default=HERE / "sam_models" / "sam_demo",
        help="parameter folder made by params_convert.py (default: sam_models/sam_demo)",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="engine folders to compare as well, built from the same parameters",
    )
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        default=sorted((HERE / "images").glob("*.jpg")),
        metavar="FILE",
        help="pictures (default: those in images/)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    parameters = load_parameters(arguments.params)
    pictures = load_pictures(arguments.image, parameters.encoder_config.img_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference, *peers = meta_contestants(parameters, device)
    contestants = [*peers, *our_contestants(parameters, arguments.engine)]
    with progress_steps(1 + len(contestants)) as announce:
        rows = measure_accuracy(parameters, reference, contestants, pictures, announce)

    record = environment()
    print(f"Against {reference.name}; {len(pictures)} pictures; {describe(record)}\n")
    print(accuracy_table(rows))
    if parameters.note:
        print(f"\nnote: {parameters.note}")
    if arguments.json:
        write_json(
            arguments.json,
            {
                "environment": record,
                "encoder": parameters.encoder_config.to_json(),
                "parameters_sha256": parameters.sha256,
                "note": parameters.note,
                "reference": reference.name,
                "pictures": [picture.name for picture in pictures],
                "rows": [row.to_json() for row in rows],
            },
        )


if __name__ == "__main__":
    sys.exit(run_script(main))

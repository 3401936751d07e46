"""Builds the image encoder's engine from a parameter folder and checks it against fp32."""

import argparse
import logging
import sys
from pathlib import Path

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import load_parameters
from samtrt.console import run_script
from samtrt.encoders.engine import ATTENTIONS, BACKENDS, PRECISIONS

MODELS = Path(__file__).resolve().parent / "sam_models"
IMAGES = Path(__file__).resolve().parent / "images"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--params",
        type=Path,
        default=MODELS / "sam_demo",
        help="parameter folder made by params_convert.py (default: sam_models/sam_demo)",
    )
    parser.add_argument(
        "--output-dir", type=Path, help="the engine folder (default: PARAMS/engine)"
    )
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    parser.add_argument("--max-batch-size", type=int, default=1, metavar="N")
    parser.add_argument(
        "--compute-capability",
        metavar="X.Y",
        help="of the GPU to build for, as 8.9 (TensorRT-RTX; default: this machine's)",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default="fused",
        help="TensorRT's own attention layer, or matmul-softmax-matmul (default: fused)",
    )
    parser.add_argument(
        "--skip-parity-gate",
        action="store_true",
        help="do not compare the engine with fp32; the sidecar records it",
    )
    return parser.parse_args()


def gate_pictures() -> list[Path]:
    """The pictures that ship with the project."""
    return sorted(IMAGES.glob("*.jpg"))


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    output_dir = arguments.output_dir or arguments.params / "engine"
    info = build_encoder(
        load_parameters(arguments.params),
        output_dir,
        gate_pictures(),
        BuildOptions(
            arguments.backend,
            arguments.precision,
            arguments.max_batch_size,
            arguments.attention,
            arguments.compute_capability,
            arguments.skip_parity_gate,
        ),
    )
    print(info.summary())
    print(f"written to  {output_dir}")


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Converts a SAM checkpoint (Meta's .pth) into a parameter folder of numpy arrays."""

import argparse
import sys
from pathlib import Path

from samtrt.checkpoints import config
from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.console import run_script

MODELS = Path(__file__).resolve().parent / "sam_models"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=MODELS / "sam_vit_h_4b8939.pth",
        help="Meta's .pth, of any encoder size (default: sam_models/sam_vit_h_4b8939.pth)",
    )
    parser.add_argument(
        "--random",
        choices=("vit_b", "vit_l", "vit_h"),
        help="instead of a checkpoint: seeded random weights of this size, to measure speed with",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --random (default: 0)")
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="the parameter folder (default: sam_models/NAME, NAME being the checkpoint's)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.random:
        parameters = random_parameters(getattr(config, arguments.random)(), arguments.seed)
        name = f"{arguments.random}_random"
    else:
        parameters = read_checkpoint(arguments.checkpoint)
        name = arguments.checkpoint.stem
    output_dir = arguments.output_dir or MODELS / name
    save_parameters(parameters, output_dir)

    count = sum(tensor.size for tensor in parameters.tensors.values())
    encoder = parameters.encoder_config
    print(f"parameters   {count / 1e6:.1f} M in {len(parameters.tensors)} tensors")
    print(
        f"encoder      {encoder.depth} blocks of {encoder.embed_dim} channels, "
        f"{encoder.num_heads} heads, {encoder.img_size}² pixels, window {encoder.window_size}, "
        f"global attention in blocks {', '.join(map(str, encoder.global_attn_indexes))}"
    )
    if parameters.note:
        print(f"note         {parameters.note}")
    print(f"written to   {output_dir}")


if __name__ == "__main__":
    sys.exit(run_script(main))

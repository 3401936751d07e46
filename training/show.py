"""Draws scenes above their masks into one picture, to look at."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from samtrt.console import run_script
from samtrt.errors import InputError
from samtrt.files import replacing
from samtrt.scenes.drawing import BACKGROUND, PADDING, generate


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0, help="index of the first scene")
    parser.add_argument("--count", type=int, default=4)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.count < 1:
        raise InputError(f"--count is {arguments.count}; expected 1 or more")
    indices = range(arguments.first, arguments.first + arguments.count)
    palette = np.random.default_rng(0).integers(40, 256, (256, 3), dtype=np.uint8)
    palette[BACKGROUND], palette[PADDING] = 0, 20
    columns = []
    for index in indices:
        scenes = generate(arguments.seed, [index])
        image = scenes.images[0].permute(1, 2, 0).numpy()
        owners = palette[scenes.owner[0].numpy()]
        columns.append(np.concatenate([image, owners])[::2, ::2])
    with replacing(arguments.output) as path:
        Image.fromarray(np.concatenate(columns, axis=1)).save(path)


if __name__ == "__main__":
    sys.exit(run_script(main))

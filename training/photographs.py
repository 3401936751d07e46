"""The demo checkpoint on real photographs, which it has never seen the like of: one picture."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from samtrt import SamPredictor, load_sam
from samtrt.console import run_script
from samtrt.decoders.prompts import Prompt
from samtrt.files import replacing
from samtrt.pictures.drawing import draw_overlay

CHECKPOINT = Path(__file__).resolve().parents[1] / "examples/sam/sam_models/sam_demo.pth"
HEIGHT = 300  # of the strip, pixels
PROMPTS = (  # on scikit-image's samples
    ("rocket", Prompt(((320, 200),), (1,))),
    ("astronaut", Prompt(((90, 400),), (1,))),
    ("astronaut", Prompt(box=(390, 0, 505, 300))),
    ("coffee", Prompt(box=(60, 20, 480, 340))),
    ("coins", Prompt(((50, 60),), (1,))),
    ("coins", Prompt(box=(250, 20, 320, 85))),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="for load_sam")
    return parser.parse_args()


def main() -> None:
    from skimage import data

    arguments = parse_arguments()
    predictor = SamPredictor(load_sam(arguments.model, precision="fp32"))
    panels = []
    for name, prompt in PROMPTS:
        image = getattr(data, name)()
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        predictor.set_image(image)
        if prompt.box is None:
            coords, labels = np.array(prompt.point_coords), np.array(prompt.point_labels)
            masks, scores, _ = predictor.predict(coords, labels)
        else:
            masks, scores, _ = predictor.predict(box=np.array(prompt.box), multimask_output=False)
        print(f"{name}: predicted IoU {scores.max():.2f}")
        panel = Image.fromarray(draw_overlay(image, masks[scores.argmax()], prompt))
        panels.append(panel.resize((panel.width * HEIGHT // panel.height, HEIGHT)))
    strip = Image.new("RGB", (sum(panel.width for panel in panels), HEIGHT))
    left = 0
    for panel in panels:
        strip.paste(panel, (left, 0))
        left += panel.width
    with replacing(arguments.output) as path:
        strip.save(path, quality=90)


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Automatic masks beside Meta's generator on the CPU, same weights, the encoder's time taken out.

    python benchmarks/automatic_masks.py --params examples/sam/sam_models/sam_demo

CPU seconds of this process are compared, one thread each, so that other work on the machine does
not count. Meta's suppression of duplicates runs on our NMS, where torchvision has no binary for
this torch; it takes milliseconds.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.parameters import load_parameters
from samtrt.console import run_script
from samtrt.encoders.load import encoder_from_parameters
from samtrt.encoders.modules import LazyImageEncoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.files import write_json
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.geometry import nms
from samtrt.modeling.prompted_decoder import build_mask_decoder
from samtrt.pictures.reading import load_image
from samtrt.reports.benchmarking import describe, environment, markdown_table
from samtrt.reports.peers import import_segment_anything, meta_sam
from samtrt.sam import Sam

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "sam"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=EXAMPLES / "sam_models" / "sam_demo")
    parser.add_argument("--image", type=Path, default=EXAMPLES / "images" / "shapes.jpg")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88)
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    parser.add_argument("--runs", type=int, default=2, help="the faster one counts (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON record to write")
    return parser.parse_args()


class TimedEncoder:
    """One encoder for both sides, and the CPU seconds that it has taken; an ``ImageEncoder``."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder
        self.img_size = encoder.img_size
        self.device = encoder.device
        self.computed_by = encoder.computed_by
        self.seconds = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        start = time.process_time()
        features: Tensor = self.encoder(x)
        self.seconds += time.process_time() - start
        return features


def meta_generator(parameters: Any, encoder: TimedEncoder, **options: Any) -> Any:
    package = import_segment_anything()
    try:
        torch.ops.torchvision.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    except (AttributeError, NotImplementedError):
        package.automatic_mask_generator.batched_nms = lambda boxes, scores, _, iou_threshold: nms(
            boxes, scores, iou_threshold
        )
    sam = meta_sam(parameters.encoder_config)
    sam.load_state_dict({name: torch.from_numpy(t) for name, t in parameters.tensors.items()})
    del sam.image_encoder
    object.__setattr__(sam, "image_encoder", encoder)
    return package.SamAutomaticMaskGenerator(sam, **options)


def seconds_without_encoder(
    generator: Any, image: np.ndarray, encoder: TimedEncoder, runs: int
) -> tuple[float, int]:
    """CPU seconds of the faster run, and how many masks it found."""
    best, found = float("inf"), 0
    for _ in range(runs):
        before, start = encoder.seconds, time.process_time()
        found = len(generator.generate(image))
        elapsed = time.process_time() - start
        best = min(best, elapsed - (encoder.seconds - before))
    return best, found


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    parameters = load_parameters(arguments.params)
    image = load_image(arguments.image)
    encoder = TimedEncoder(encoder_from_parameters(parameters, "cpu", precision="fp32"))
    decoder = build_mask_decoder(parameters.decoder(), parameters.encoder_config)
    sam = Sam(
        LazyImageEncoder(lambda _: encoder, encoder.img_size),
        decoder.prompt_encoder,
        decoder.mask_decoder,
        parameters_sha256=parameters.sha256,
    ).eval()
    options = {
        "points_per_side": arguments.points_per_side,
        "pred_iou_thresh": arguments.pred_iou_thresh,
        "stability_score_thresh": arguments.stability_score_thresh,
    }
    generators = {
        "segment_anything": meta_generator(parameters, encoder, **options),
        "samtrt": SamAutomaticMaskGenerator(sam, **options),
    }
    results = {
        name: seconds_without_encoder(generator, image, encoder, arguments.runs)
        for name, generator in generators.items()
    }
    record = environment()
    height, width = image.shape[:2]
    print(f"{arguments.image.name}, {height}×{width}, {options}; {describe(record)}\n")
    rows = [[name, str(masks), f"{seconds:.2f}"] for name, (seconds, masks) in results.items()]
    print(markdown_table(["generator", "masks", "CPU s"], rows))
    if arguments.output:
        write_json(
            arguments.output,
            {
                "environment": record,
                "image": arguments.image.name,
                "options": options,
                "cpu_seconds": {name: seconds for name, (seconds, _) in results.items()},
                "masks": {name: masks for name, (_, masks) in results.items()},
            },
        )


if __name__ == "__main__":
    sys.exit(run_script(main))

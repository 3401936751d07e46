"""Times what a user waits for: picture to mask, and everything in a picture; writes a record.

    python benchmarks/end_to_end.py --model vit_h --output benchmarks/results/h200_end_to_end.json
    python benchmarks/end_to_end.py --params examples/sam/sam_models/sam_demo --device cpu

Seeded random weights predict masks that all span the picture, of which a generator keeps one.
So automatic masks are timed twice: with the model's own masks, thresholds set so that half of
them pass; and with the decoder's work done but its masks replaced by discs around the points, of
which some ninety stay, as many as a trained model finds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.parameters import Parameters, load_parameters, random_parameters
from samtrt.console import run_script
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import Decoder
from samtrt.encoders.cuda.calibration import calibrated_plan
from samtrt.encoders.cuda.encoder import FusedImageEncoder
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.encoders.modules import LazyImageEncoder
from samtrt.errors import InputError
from samtrt.files import write_json
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.pictures.transforms import preprocess
from samtrt.reports.benchmarking import describe, environment, markdown_table
from samtrt.reports.end_to_end import end_to_end_table, measure_end_to_end, measure_everything
from samtrt.sam import Sam, sam_from_parameters

PROMPT_PICTURE = (1080, 1920)
EVERYTHING_PICTURE = (1024, 1536)
DISC_RADII = (20.0, 60.0, 200.0)  # in pixels of the model's frame
DISCS_THAT_SCORE = 0.47  # share of the discs whose predicted IoU passes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_h", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--params", type=Path, help="parameter folder, in place of --model")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp16", "bf16", "fp32", "fp8"),
        help="of the image encoder (default: auto, the device's; fp8 with all linear layers in it)",
    )
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--runs", type=int, default=60, help="prompts timed (default: 60)")
    parser.add_argument("--everything-runs", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON record to write")
    return parser.parse_args()


def random_picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth colours with a little noise, [H, W, 3] uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, 24, 36, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    noisy = smooth + 8 * torch.randn(1, 3, *size, generator=generator)
    return noisy[0].permute(1, 2, 0).clamp(0, 255).byte().contiguous().numpy()


class DiscDecoder:
    """Decodes as ever, then hands on discs around the points in place of the masks."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.img_size, self.num_masks = decoder.img_size, decoder.num_masks
        self.parameters_sha256, self.note = decoder.parameters_sha256, decoder.note

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # First: what is sent to a GPU waits for all that was queued before.
        coords = prompts.coords[:, 0].to(picture.features)
        factors = torch.tensor([1.0, 3.0, 7.0], device=coords.device)
        low_res, _ = self.decoder(picture, prompts, multimask_output)
        x, y = coords[:, :, None, None].unbind(1)
        pixels = 4 * torch.arange(low_res.shape[-1], device=low_res.device) + 2
        distance = ((pixels[None, None] - x) ** 2 + (pixels[None, :, None] - y) ** 2).sqrt()
        discs = torch.stack([(radius - distance) / 2 for radius in DISC_RADII], dim=1)
        chance = ((x + y)[:, 0] * factors) % 1.7 / 1.7
        return discs, torch.where(chance < DISCS_THAT_SCORE, 0.95, 0.5)


def half_pass(sam: Sam, image: np.ndarray) -> dict[str, float]:
    """Thresholds that about half of the model's masks pass, one after the other."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    fractions = torch.rand(32, 1, 2, generator=torch.Generator().manual_seed(0))
    coords = (fractions * torch.tensor(predictor.input_size[::-1])).to(sam.device)
    labels = torch.ones(32, 1, device=sam.device)
    logits, scores, _ = predictor.predict_torch(coords, labels, return_logits=True)
    inner, outer = ((logits > cut).flatten(2).sum(2).float() for cut in (1.0, -1.0))
    score = float(scores.median())
    stability = (inner / outer.clamp(min=1))[scores > score]
    return {"pred_iou_thresh": score, "stability_score_thresh": float(stability.median())}


def fp8_encoder(parameters: Parameters, device: str, seed: int) -> LazyImageEncoder:
    """With scales of two pictures of their own. (A build writes it into an engine after its parity
    gate, which random weights do not pass.)"""
    config, tensors = parameters.encoder_config, parameters.encoder()
    pictures = [random_picture(PROMPT_PICTURE, seed + 1 + index) for index in range(2)]
    frames = [preprocess(picture, config.img_size)[0] for picture in pictures]
    plan = calibrated_plan(config, tensors, frames, device)
    encoder = FusedImageEncoder(config, tensors, "fp8", device, fp8=plan)
    return LazyImageEncoder(lambda device: encoder, config.img_size).to(device)


def main() -> None:
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs an NVIDIA GPU, and there is none; take --device cpu")
    if arguments.device == "cpu" and arguments.precision == "fp8":
        raise InputError("--precision fp8 needs a Hopper GPU; take --device cuda")
    if arguments.params:
        parameters = load_parameters(arguments.params)
    else:
        parameters = random_parameters(getattr(sizes, arguments.model)(), arguments.seed)
    is_fp8 = arguments.precision == "fp8"
    precision = "auto" if is_fp8 else arguments.precision
    sam = sam_from_parameters(parameters, device=arguments.device, precision=precision)
    if is_fp8:
        sam.image_encoder = fp8_encoder(parameters, arguments.device, arguments.seed)
    name = arguments.params.name if arguments.params else arguments.model

    prompt = measure_end_to_end(sam, random_picture(PROMPT_PICTURE, arguments.seed), arguments.runs)
    image = random_picture(EVERYTHING_PICTURE, arguments.seed)
    own = {"points_per_side": arguments.points_per_side, **half_pass(sam, image)}
    discs = {"points_per_side": arguments.points_per_side}
    everything = {}
    for label, decoder, options in (
        ("the model's masks", None, own),
        ("discs", DiscDecoder(sam.get_decoder()), discs),
    ):
        for mode in ("binary_mask", "uncompressed_rle"):
            generator = SamAutomaticMaskGenerator(sam, output_mode=mode, decoder=decoder, **options)
            everything[f"{label}, {mode}"] = measure_everything(
                generator, image, arguments.everything_runs
            )

    record = environment()
    print(f"{name}; {describe(record)}\n\n{end_to_end_table({name: prompt})}\n")
    rows = [
        [label, str(result.points), str(result.masks), f"{result.p50:.1f}", f"{result.p90:.1f}"]
        for label, result in everything.items()
    ]
    print(markdown_table(["everything", "points", "records", "p50 ms", "p90 ms"], rows))
    if arguments.output:
        write_json(
            arguments.output,
            {
                "environment": record,
                "note": parameters.note,
                "model": name,
                "computed_by": sam.image_encoder.computed_by,
                "prompt": prompt.to_json(),
                "everything": {label: result.to_json() for label, result in everything.items()},
            },
        )


if __name__ == "__main__":
    sys.exit(run_script(main))

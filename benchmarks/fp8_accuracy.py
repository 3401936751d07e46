"""What e4m3 costs the demo model's masks, on a reference in torch: no GPU of any kind is needed.

    python benchmarks/fp8_accuracy.py --keep none                # every linear layer in e4m3
    python benchmarks/fp8_accuracy.py --keep auto                # what a build would choose
    python benchmarks/fp8_accuracy.py --keep auto --outliers 30  # with channels far above the rest

The masks of one click are compared with fp32's, and both with the true ones, on scenes that the
model was not trained on. With --outliers, some channels are that many times as large as trained,
and what reads them makes up for it (``benchmarks/outliers.py``).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.outliers import with_outliers
from samtrt.building.accuracy import load_pictures, relative_l2
from samtrt.building.fp8 import calibrations, kept_linears
from samtrt.building.gate_pictures import calibration_pictures, drawn_pictures
from samtrt.building.parity import LIMITS
from samtrt.checkpoints.meta import read_parameters
from samtrt.cli.evaluate import UNSEEN_SEED
from samtrt.cli.options import log_to_stderr
from samtrt.console import run_script, track
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders.cuda.fp8_reference import Fp8Reference
from samtrt.models.catalogue import find_checkpoint
from samtrt.reports.evaluation import evaluate_picture
from samtrt.scenes.drawing import examples


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--keep", default="auto", help="as --fp8-keep of build.py")
    parser.add_argument("--outliers", type=float, default=1.0, help="how much larger, 1 for none")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    log_to_stderr()
    parameters = read_parameters(find_checkpoint(arguments.checkpoint))
    if arguments.outliers != 1.0:
        parameters = with_outliers(parameters, arguments.outliers)
    config, device = parameters.encoder_config, torch.device(arguments.device)
    pictures = load_pictures(calibration_pictures(), config.img_size)
    keep = kept_linears(arguments.keep, parameters)
    judged = load_pictures(drawn_pictures(), config.img_size)
    chosen = next(calibrations(parameters, pictures, judged, keep, LIMITS["fp8"], device))
    encoder = Fp8Reference(config, parameters.encoder(), chosen.plan, device)
    exact = Fp8Reference(config, parameters.encoder(), None, device)
    exact.stream = torch.float32
    decoder = TorchDecoder.from_parameters(parameters, device)
    errors: list[float] = []
    of_fp32: list[Tensor] = []

    def in_fp32(picture: Tensor) -> Tensor:
        of_fp32.append(exact(picture))
        return of_fp32[-1]

    def in_fp8(picture: Tensor) -> Tensor:
        embedding = encoder(picture)
        errors.append(relative_l2(embedding, of_fp32[-1]))
        return embedding

    agreement: list[float] = []
    truth: list[tuple[float, float]] = []
    scenes = examples(UNSEEN_SEED, arguments.scenes, config.img_size, device)
    for image, masks, groups in track(scenes, "scenes", arguments.scenes):
        if not len(masks):
            continue
        first = evaluate_picture(in_fp32, decoder, image, masks, groups, device, in_fp8)
        second = evaluate_picture(in_fp8, decoder, image, masks, groups, device)
        agreement += [record.against["1 click"] for record in first]
        pairs = zip(first, second, strict=True)
        truth += [(mine.iou["1 click"], other.iou["1 click"]) for other, mine in pairs]
    fp8, fp32 = (sum(ious) / len(ious) for ious in zip(*truth, strict=True))
    print(f"{chosen.record}")
    print(f"{len(agreement)} masks; embedding, relative L2: {sum(errors) / len(errors):.2%}")
    print(
        f"1 click, IoU with fp32's: mean {sum(agreement) / len(agreement):.4f}, "
        f"worst {min(agreement):.4f}"
    )
    print(f"1 click, mean IoU with the truth: fp8 {fp8:.4f}, fp32 {fp32:.4f}")


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Measures an engine's masks on procedural scenes with exact masks: mean IoU by kind of prompt."""

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from samtrt.console import run_script
from samtrt.decoders.load import load_decoder
from samtrt.encoders.engine import BACKENDS
from samtrt.encoders.load import load_encoder
from samtrt.errors import InputError
from samtrt.files import write_json
from samtrt.reports.evaluation import PROMPT_KINDS, Encode, evaluate_picture, summarise

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(__file__).resolve().parent / "sam_models" / "sam_demo"
UNSEEN_SEED = 2024  # the demo checkpoint was trained on seed 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--engine", type=Path, default=MODEL / "engine", metavar="DIR", help="engine to measure")
    add("--backend", choices=("auto", *BACKENDS), default="auto", help="that runs --engine")
    add("--decoder", type=Path, default=MODEL, help="parameter folder or ONNX file")
    add("--against", type=Path, metavar="DIR", help="second engine, to compare the masks with")
    add("--against-backend", choices=("auto", *BACKENDS), default="auto")
    add("--scenes", type=int, default=500, help="number of scenes (default: 500)")
    add("--seed", type=int, default=UNSEEN_SEED, help=f"of the scenes (default: {UNSEEN_SEED})")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


def print_table(summary: dict[str, Any]) -> None:
    print(f"{'':<12}{'masks':>7}" + "".join(f"{kind:>17}" for kind in PROMPT_KINDS))
    rows = {"all": {"masks": summary["masks"], **summary["mean_iou"]}, **summary["by_group"]}
    for name, row in rows.items():
        print(f"{name:<12}{row['masks']:>7}" + "".join(f"{row[k]:>17.4f}" for k in PROMPT_KINDS))
    print(f"predicted-IoU correlation    {summary['predicted_iou_correlation']:.4f}")
    for kind, value in summary.get("mean_iou_against", {}).items():
        print(f"mean IoU with --against, {kind}: {value:.4f}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.scenes < 1:
        raise InputError(f"--scenes is {arguments.scenes}; expected 1 or more")
    # The scenes belong to the checkout, beside the package, as the training does.
    sys.path.insert(0, str(ROOT))
    from training.scenes import examples

    encoder = load_encoder(arguments.engine, arguments.backend)
    decoder = load_decoder(arguments.decoder)
    against: Encode | None = None
    if arguments.against is not None:
        second = load_encoder(arguments.against, arguments.against_backend)

        def against(picture: Tensor) -> Tensor:
            return second(picture.to(second.device)).to(encoder.device)

    device = encoder.device
    size = decoder.img_size
    records = []
    drawn = examples(arguments.seed, arguments.scenes, size, device)
    for image, masks, groups in tqdm(drawn, total=arguments.scenes, unit="scene"):
        if len(masks):
            records += evaluate_picture(encoder, decoder, image, masks, groups, device, against)
    summary = {
        "engine": str(arguments.engine),
        "against": None if arguments.against is None else str(arguments.against),
        "seed": arguments.seed,
        "scenes": arguments.scenes,
        **summarise(records),
    }
    print_table(summary)
    if arguments.json is not None:
        write_json(arguments.json, summary)


if __name__ == "__main__":
    sys.exit(run_script(main))

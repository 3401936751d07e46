"""Measures an engine's masks on procedural scenes with exact masks: mean IoU by kind of prompt."""

import argparse
from pathlib import Path
from typing import Any

from samtrt.cli.options import Options
from samtrt.cli.parts.model import add_model, chosen_model
from samtrt.errors import InputError

UNSEEN_SEED = 2024  # the demo checkpoint was trained on seed 1


def add_options(options: Options) -> None:
    """Adds the command's options."""
    add_model(options)
    options.add(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="mask decoder, a parameter folder or an ONNX file (default: the model's own)",
    )
    options.add(
        "--against", type=Path, metavar="DIR", help="second engine, to compare the masks with"
    )
    options.add_backend("--against-backend", "--against")
    options.add("--scenes", type=int, default=500, help="number of scenes (default: 500)")
    options.add(
        "--seed", type=int, default=UNSEEN_SEED, help=f"of the scenes (default: {UNSEEN_SEED})"
    )
    options.add_json()


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints a table."""
    from torch import Tensor

    from samtrt.console import track
    from samtrt.encoders.load import load_encoder
    from samtrt.files import write_json
    from samtrt.reports.evaluation import Encode, evaluate_picture, summarise
    from samtrt.scenes.drawing import examples

    if arguments.scenes < 1:
        raise InputError(f"--scenes is {arguments.scenes}; expected 1 or more")
    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}; expected 0 or more")
    model = chosen_model(arguments)
    encoder = load_encoder(model.engine, arguments.backend)
    decoder = model.decoder(arguments.decoder)
    against: Encode | None = None
    if arguments.against is not None:
        second = load_encoder(arguments.against, arguments.against_backend)

        def against(picture: Tensor) -> Tensor:
            return second(picture.to(second.device)).to(encoder.device)

    device = encoder.device
    records = []
    drawn = examples(arguments.seed, arguments.scenes, decoder.img_size, device)
    for image, masks, groups in track(drawn, "scenes", arguments.scenes):
        if len(masks):
            records += evaluate_picture(encoder, decoder, image, masks, groups, device, against)
    summary = {
        "engine": str(model.engine),
        "against": None if arguments.against is None else str(arguments.against),
        "seed": arguments.seed,
        "scenes": arguments.scenes,
        **summarise(records),
    }
    _print_table(summary)
    if arguments.json is not None:
        write_json(arguments.json, summary)


def _print_table(summary: dict[str, Any]) -> None:
    from samtrt.reports.evaluation import PROMPT_KINDS

    print(f"{'':<12}{'masks':>7}" + "".join(f"{kind:>17}" for kind in PROMPT_KINDS))
    rows = {"all": {"masks": summary["masks"], **summary["mean_iou"]}, **summary["by_group"]}
    for name, row in rows.items():
        print(f"{name:<12}{row['masks']:>7}" + "".join(f"{row[k]:>17.4f}" for k in PROMPT_KINDS))
    print(f"predicted-IoU correlation    {summary['predicted_iou_correlation']:.4f}")
    for kind, value in summary.get("mean_iou_against", {}).items():
        print(f"mean IoU with --against, {kind}: {value:.4f}")

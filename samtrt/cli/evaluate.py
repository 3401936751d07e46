"""Measures an engine's masks on procedural scenes with exact masks: mean IoU by kind of prompt."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samtrt.cli.options import DEMO, Options, required
from samtrt.errors import InputError

UNSEEN_SEED = 2024  # the demo checkpoint was trained on seed 1


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_path("--engine", "engine to measure", DEMO / "engine", metavar="DIR")
    options.add_backend()
    options.add_path("--decoder", "parameter folder or ONNX file", DEMO)
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
    from samtrt.decoders.load import load_decoder
    from samtrt.encoders.load import load_encoder
    from samtrt.files import write_json
    from samtrt.reports.evaluation import Encode, evaluate_picture, summarise

    if arguments.scenes < 1:
        raise InputError(f"--scenes is {arguments.scenes}; expected 1 or more")
    draw = _scenes(arguments.home)
    engine = required(arguments.engine, "--engine", "an engine folder")
    encoder = load_encoder(engine, arguments.backend)
    decoder = load_decoder(
        required(arguments.decoder, "--decoder", "a parameter folder or an ONNX file")
    )
    against: Encode | None = None
    if arguments.against is not None:
        second = load_encoder(arguments.against, arguments.against_backend)

        def against(picture: Tensor) -> Tensor:
            return second(picture.to(second.device)).to(encoder.device)

    device = encoder.device
    records = []
    drawn = draw(arguments.seed, arguments.scenes, decoder.img_size, device)
    for image, masks, groups in track(drawn, "scenes", arguments.scenes):
        if len(masks):
            records += evaluate_picture(encoder, decoder, image, masks, groups, device, against)
    summary = {
        "engine": str(engine),
        "against": None if arguments.against is None else str(arguments.against),
        "seed": arguments.seed,
        "scenes": arguments.scenes,
        **summarise(records),
    }
    _print_table(summary)
    if arguments.json is not None:
        write_json(arguments.json, summary)


def _scenes(home: Path | None) -> Callable[..., Any]:
    """What draws the scenes; it belongs to the checkout, beside the package.

    Raises:
        InputError: it is not to be found.
    """
    checkout = Path.cwd() if home is None else home.parents[1]
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    try:
        from training.scenes import examples
    except ModuleNotFoundError as error:
        if error.name not in ("training", "training.scenes"):
            raise
        raise InputError(
            "the scenes are drawn by samtrt's checkout (training/), which is not here; "
            "run this in the checkout's folder"
        ) from error
    return examples


def _print_table(summary: dict[str, Any]) -> None:
    from samtrt.reports.evaluation import PROMPT_KINDS

    print(f"{'':<12}{'masks':>7}" + "".join(f"{kind:>17}" for kind in PROMPT_KINDS))
    rows = {"all": {"masks": summary["masks"], **summary["mean_iou"]}, **summary["by_group"]}
    for name, row in rows.items():
        print(f"{name:<12}{row['masks']:>7}" + "".join(f"{row[k]:>17.4f}" for k in PROMPT_KINDS))
    print(f"predicted-IoU correlation    {summary['predicted_iou_correlation']:.4f}")
    for kind, value in summary.get("mean_iou_against", {}).items():
        print(f"mean IoU with --against, {kind}: {value:.4f}")

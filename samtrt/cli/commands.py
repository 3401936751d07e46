"""The console command ``samtrt``: from a checkpoint to masks, without the examples folder.

Each command reads its options and calls what the scripts of ``examples/sam`` call. Modules that
bring torch along are imported by the command that needs them, so that ``--help`` is there at once.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from samtrt.console import run_script

BACKENDS = ("auto", "tensorrt", "cuda", "cpu")
SIZES = ("vit_b", "vit_l", "vit_h")

Command = Callable[[argparse.Namespace], int | None]


def main() -> None:
    """Runs one command and ends the process with its exit status."""
    sys.exit(run_script(lambda: run(sys.argv[1:])))


def run(argv: list[str]) -> int | None:
    """Runs the command that the arguments name; returns its exit status.

    Raises:
        SamtrtError: whatever the command cannot do.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    command: Command = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="samtrt", description="Segment Anything, fast.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, add_options, command in (
        ("convert", _convert_options, convert),
        ("build", _build_options, build),
        ("run", _run_options, segment_one),
        ("everything", _everything_options, everything),
        ("serve", _serve_options, serve),
    ):
        text = (command.__doc__ or "").splitlines()[0].rstrip(".")
        subparser = commands.add_parser(name, help=text[0].lower() + text[1:], description=text)
        add_options(subparser)
        subparser.set_defaults(command=command)
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--params", type=Path, required=True, help="parameter folder made by `samtrt convert`"
    )
    parser.add_argument(
        "--engine", type=Path, help="engine folder made by `samtrt build` (default: PARAMS/engine)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto")


def _convert_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", type=Path, nargs="?", help="Meta's .pth, of any size")
    source.add_argument(
        "--random", choices=SIZES, help="seeded random weights, to measure speed with"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --random (default: 0)")
    parser.add_argument(
        "--output-dir", type=Path, help="default: the checkpoint's name without its suffix"
    )


def convert(arguments: argparse.Namespace) -> None:
    """Converts a SAM checkpoint into a parameter folder."""
    from samtrt.checkpoints import config
    from samtrt.checkpoints.meta import read_checkpoint
    from samtrt.checkpoints.parameters import random_parameters, save_parameters

    if arguments.random:
        parameters = random_parameters(getattr(config, arguments.random)(), arguments.seed)
        default_dir = Path(f"{arguments.random}_random")
    else:
        parameters = read_checkpoint(arguments.checkpoint)
        default_dir = arguments.checkpoint.with_suffix("")
    output_dir = arguments.output_dir or default_dir
    save_parameters(parameters, output_dir)
    count = sum(tensor.size for tensor in parameters.tensors.values())
    print(f"parameters  {count / 1e6:.1f} M in {len(parameters.tensors)} tensors")
    _print_note(parameters.note)
    print(f"written     {output_dir}")


def _build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("params", type=Path, help="parameter folder made by `samtrt convert`")
    parser.add_argument("--output-dir", type=Path, help="default: PARAMS/engine")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--precision", choices=("auto", "fp16", "bf16", "fp32"), default="auto")
    parser.add_argument("--max-batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--compute-capability", metavar="X.Y", help="of the GPU to build for")
    parser.add_argument("--attention", choices=("fused", "plain"), default="fused")
    parser.add_argument(
        "--pictures", type=Path, nargs="+", default=[], help="what the parity gate compares on"
    )
    parser.add_argument(
        "--skip-parity-gate", action="store_true", help="do not compare the engine with fp32"
    )


def build(arguments: argparse.Namespace) -> None:
    """Builds the image encoder's engine and checks it against fp32."""
    from samtrt.building.build import BuildOptions, build_encoder
    from samtrt.checkpoints.parameters import load_parameters

    output_dir = arguments.output_dir or arguments.params / "engine"
    options = BuildOptions(
        arguments.backend,
        arguments.precision,
        arguments.max_batch_size,
        arguments.attention,
        arguments.compute_capability,
        arguments.skip_parity_gate,
    )
    info = build_encoder(load_parameters(arguments.params), output_dir, arguments.pictures, options)
    print(info.summary())
    print(f"written     {output_dir}")


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="the picture")
    _model_options(parser)
    parser.add_argument("--point-coords", type=float, nargs="+", default=[], metavar="X Y")
    parser.add_argument("--point-labels", type=int, nargs="+", metavar="LABEL")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"))
    parser.add_argument("--multimask", action="store_true", help="three masks instead of one")
    parser.add_argument("--output", type=Path, default=Path("mask.png"), help="default: mask.png")


def segment_one(arguments: argparse.Namespace) -> None:
    """Segments one object of a picture."""
    from rich.console import Console

    from samtrt.cli.report import print_masks, print_times, write_masks
    from samtrt.cli.segment import StageTimes, segment
    from samtrt.decoders.load import load_decoder
    from samtrt.encoders.load import load_encoder
    from samtrt.masks.prompts import Prompt
    from samtrt.pictures.reading import check_png_output, load_image

    check_png_output(arguments.output)
    prompt = Prompt.from_numbers(arguments.point_coords, arguments.point_labels, arguments.box)
    times = StageTimes()
    with times.stage("read picture"):
        image = load_image(arguments.image)
    prompt.check_inside(image.shape[:2])
    with times.stage("load model"):
        decoder = load_decoder(arguments.params)
        encoder = load_encoder(
            arguments.engine or arguments.params / "engine",
            arguments.backend,
            parameters_sha256=decoder.parameters_sha256,
        )
    masks = segment(image, prompt, encoder, decoder, arguments.multimask, times)
    with times.stage("draw, write"):
        files = write_masks(arguments.output, image, masks, prompt)
    console = Console()
    print_masks(console, masks)
    print_times(console, times)
    _print_note(decoder.note)
    for file in files:
        print(f"written     {file}")


def _everything_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="pictures, subfolders included")
    _model_options(parser)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=("json", "png"),
        default=["json", "png"],
        help="COCO JSON, which is always written, and PNG (default: both)",
    )
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88)
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    parser.add_argument("--box-nms-thresh", type=float, default=0.7)
    parser.add_argument("--crop-n-layers", type=int, default=0)
    parser.add_argument("--min-mask-region-area", type=int, default=0, metavar="PIXELS")


def everything(arguments: argparse.Namespace) -> int:
    """Segments everything in every picture of a folder; resumes where it was interrupted."""
    from samtrt.jobs.folder import segment_folder
    from samtrt.sam import load_sam

    sam = load_sam(
        arguments.engine or arguments.params / "engine", arguments.params, arguments.backend
    )
    report = segment_folder(
        sam,
        arguments.folder,
        arguments.output_dir,
        arguments.formats,
        points_per_side=arguments.points_per_side,
        points_per_batch=arguments.points_per_batch,
        pred_iou_thresh=arguments.pred_iou_thresh,
        stability_score_thresh=arguments.stability_score_thresh,
        box_nms_thresh=arguments.box_nms_thresh,
        crop_n_layers=arguments.crop_n_layers,
        min_mask_region_area=arguments.min_mask_region_area,
    )
    print(f"segmented   {len(report.segmented)} pictures, {sum(report.segmented.values())} masks")
    print(f"resumed     {len(report.resumed)} pictures were done before")
    print(f"skipped     {len(report.failed)} files")
    for name, reason in report.failed.items():
        print(f"            {name}: {reason}")
    print(f"written     {arguments.output_dir}")
    return 1 if report.failed else 0


def _serve_options(parser: argparse.ArgumentParser) -> None:
    from samtrt.server.options import add_arguments

    add_arguments(parser)


def serve(arguments: argparse.Namespace) -> None:
    """Serves the click page and the HTTP API."""
    from samtrt.server.launch import serve as start
    from samtrt.server.options import options_from

    start(options_from(arguments))


def _print_note(note: str) -> None:
    if note:
        print(f"note        {note}")

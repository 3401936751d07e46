"""Segments one object of a picture: an engine, a mask decoder and a prompt in, a mask out."""

import argparse
from pathlib import Path

from samtrt.cli.options import DEMO, ENGINE, PARAMS, Options, required

DEMO_PICTURE = Path("images", "demo.jpg")
DEMO_POINT = (800, 460)


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add_subject("--image", "the picture", DEMO_PICTURE)
    demo = options.home and f" (default: {DEMO_POINT[0]} {DEMO_POINT[1]} of the demo picture)"
    options.add(
        "--point-coords",
        type=float,
        nargs="+",
        default=[],
        metavar="X Y",
        help=f"points on the object and beside it, in the picture's pixels{demo or ''}",
    )
    options.add(
        "--point-labels",
        type=int,
        nargs="+",
        metavar="LABEL",
        help="for each point 1 (on the object) or 0 (not on it); default: all 1",
    )
    options.add(
        "--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="around the object"
    )
    options.add(
        "--multimask",
        action="store_true",
        help="three masks: whole, part and subpart; the best goes to --output, all beside it",
    )
    options.add(
        "--params",
        type=Path,
        help=f"{PARAMS}: its mask decoder, and the engine in it, where --decoder and --engine do "
        "not name others",
    )
    example = "PARAMS/engine" if options.home is None else "sam_models/sam_demo/engine"
    options.add("--engine", type=Path, help=f"{ENGINE} (default: {example})")
    options.add(
        "--decoder",
        type=Path,
        help="file made by `samtrt export-decoder`, or by Meta's export_onnx_model.py "
        "(default: mask_decoder.onnx beside the engine folder)",
    )
    options.add_backend()
    options.add_path(
        "--output",
        "the mask; the overlay is written beside it",
        Path("outputs", "mask.png"),
        Path("mask.png"),
    )


def run(arguments: argparse.Namespace) -> None:
    """Segments, writes the masks and prints their scores and the time of each stage."""
    from rich.console import Console

    from samtrt.cli.segment import StageTimes, print_masks, print_times, segment, write_masks
    from samtrt.decoders.load import load_decoder
    from samtrt.decoders.prompts import Prompt
    from samtrt.encoders.engine import read_engine_info
    from samtrt.encoders.load import load_encoder
    from samtrt.pictures.reading import check_png_output, load_image

    home: Path | None = arguments.home
    picture = required(arguments.image, "--image", "a picture")
    engine, decoder_path = _model(arguments)
    check_png_output(arguments.output)
    nothing_asked = not arguments.point_coords and arguments.box is None
    if nothing_asked and home is not None and picture == home / DEMO_PICTURE:
        arguments.point_coords = DEMO_POINT
    prompt = Prompt.from_numbers(arguments.point_coords, arguments.point_labels, arguments.box)

    times = StageTimes()
    with times.stage("read picture"):
        image = load_image(picture)
    prompt.check_inside(image.shape[:2])
    with times.stage("load mask decoder"):
        decoder = load_decoder(decoder_path)
    with times.stage("load engine"):
        encoder = load_encoder(
            engine, arguments.backend, parameters_sha256=decoder.parameters_sha256 or None
        )
    masks = segment(image, prompt, encoder, decoder, arguments.multimask, times)
    with times.stage("draw, write"):
        files = write_masks(arguments.output, image, masks, prompt)

    console = Console()
    print_masks(console, masks)
    print_times(console, times)
    info = read_engine_info(engine)
    print(f"encoder  {info.backend} backend, {info.precision}, on {encoder.device}")
    print(f"decoder  {decoder}")
    for file in files:
        print(f"written  {file}")
    if note := info.note or decoder.note:
        console.print(f"note     {note}", style="bold yellow", soft_wrap=True, highlight=False)


def _model(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The engine folder, and the parameter folder or ONNX file of the mask decoder."""
    if arguments.params is not None:
        engine = arguments.engine or arguments.params / "engine"
        return engine, arguments.decoder or arguments.params
    example = arguments.home and arguments.home / DEMO / "engine"
    engine = required(
        arguments.engine or example,
        "--engine",
        "an engine folder, or a parameter folder (--params)",
    )
    return engine, arguments.decoder or engine.parent / "mask_decoder.onnx"

"""Segments one object of a picture: an engine, a mask decoder and a prompt in, a mask out."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from samtrt.cli.report import print_masks, print_times, write_masks
from samtrt.cli.segment import StageTimes, segment
from samtrt.console import run_script
from samtrt.decoders.load import load_decoder
from samtrt.encoders.engine import read_engine_info
from samtrt.encoders.load import load_encoder
from samtrt.masks.prompts import Prompt
from samtrt.pictures.reading import check_png_output, load_image

HERE = Path(__file__).resolve().parent
DEMO_PICTURE = HERE / "images" / "demo.jpg"
DEMO_POINT = (800, 460)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--image", type=Path, default=DEMO_PICTURE, help="the picture (default: images/demo.jpg)"
    )
    parser.add_argument(
        "--point-coords",
        type=float,
        nargs="+",
        default=[],
        metavar="X Y",
        help="points on the object and beside it, in the picture's pixels "
        f"(default: {DEMO_POINT[0]} {DEMO_POINT[1]} of the demo picture)",
    )
    parser.add_argument(
        "--point-labels",
        type=int,
        nargs="+",
        metavar="LABEL",
        help="for each point 1 (on the object) or 0 (not on it); default: all 1",
    )
    parser.add_argument(
        "--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="around the object"
    )
    parser.add_argument(
        "--multimask",
        action="store_true",
        help="three masks: whole, part and subpart; the best goes to --output, all beside it",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        default=HERE / "sam_models" / "sam_demo" / "engine",
        help="folder made by build.py (default: sam_models/sam_demo/engine)",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        help="file made by export_decoder.py, or by Meta's export_onnx_model.py "
        "(default: mask_decoder.onnx beside the engine folder)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "outputs" / "mask.png",
        help="the mask; the overlay is written beside it (default: outputs/mask.png)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    check_png_output(arguments.output)
    nothing_asked = not arguments.point_coords and arguments.box is None
    if nothing_asked and arguments.image == DEMO_PICTURE:
        arguments.point_coords = DEMO_POINT
    prompt = Prompt.from_numbers(arguments.point_coords, arguments.point_labels, arguments.box)

    times = StageTimes()
    with times.stage("read picture"):
        image = load_image(arguments.image)
    prompt.check_inside(image.shape[:2])
    with times.stage("load mask decoder"):
        decoder = load_decoder(arguments.decoder or arguments.engine.parent / "mask_decoder.onnx")
    with times.stage("load engine"):
        encoder = load_encoder(
            arguments.engine, parameters_sha256=decoder.parameters_sha256 or None
        )
    masks = segment(image, prompt, encoder, decoder, arguments.multimask, times)
    with times.stage("draw, write"):
        files = write_masks(arguments.output, image, masks, prompt)

    console = Console()
    print_masks(console, masks)
    print_times(console, times)
    engine = read_engine_info(arguments.engine)
    print(f"encoder  {engine.backend} backend, {engine.precision}, on {encoder.device}")
    print(f"decoder  {decoder}")
    for file in files:
        print(f"written  {file}")
    if note := engine.note or decoder.note:
        console.print(f"note     {note}", style="bold yellow", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(run_script(main))

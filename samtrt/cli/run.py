"""Segments one object of a picture: a model, pictures and a prompt in, masks out."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtrt.cli.options import Options
from samtrt.cli.parts.model import add_model, chosen_model
from samtrt.cli.parts.pictures import add_pictures, output_files
from samtrt.cli.parts.prompts import add_prompts, given_prompt, nothing_asked
from samtrt.errors import InputError, SamtrtError

if TYPE_CHECKING:
    from samtrt.decoders.prompts import Prompt
    from samtrt.pictures.sources import PictureSource

DEMO_PICTURE = Path("images", "demo.jpg")
DEMO_POINT = (800, 460)


def add_options(options: Options) -> None:
    """Adds the command's options."""
    text = "files, patterns such as 'in/*.jpg', http(s) addresses, or - for standard input"
    add_pictures(options, "--image", text, DEMO_PICTURE)
    demo = f" (default: {DEMO_POINT[0]},{DEMO_POINT[1]} of the demo picture)"
    add_prompts(options, "image", demo if options.home else "")
    options.add(
        "--multimask",
        action="store_true",
        help="three masks: whole, part and subpart; the best goes to --output, all beside it",
    )
    add_model(options)
    options.add(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="mask decoder made by `samtrt export-decoder`, or by Meta's export_onnx_model.py "
        "(default: the model's own, or mask_decoder.onnx beside the engine folder)",
    )
    default = "mask.png" if options.home is None else "outputs/mask.png"
    options.add(
        "--output",
        default="",
        metavar="FILE",
        help="the mask; the overlay is written beside it; of several pictures a folder "
        f"(default: {default}, and PICTURE_mask.png of several)",
    )
    options.add("--json", action="store_true", help="print what was found as JSON, masks as RLE")
    options.add("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    """Segments, writes the masks and prints what was found; status 1 where a picture failed."""
    from samtrt.pictures.sources import picture_sources

    home: Path | None = arguments.home
    if not arguments.image and home is not None:
        arguments.image = [str(home / DEMO_PICTURE)]
    if not arguments.image:
        raise InputError("no picture is named; give files, as `samtrt run photo.jpg …` does")
    sources = picture_sources(arguments.image)
    folder = Path() if home is None else home / "outputs"
    output = arguments.output or (str(folder) + "/" if len(sources) > 1 else "")
    files = output_files(output, sources, str(folder / "mask.png"))
    if home is not None and nothing_asked(arguments) and len(sources) == 1:
        arguments.point = [(*DEMO_POINT, 1)] if sources[0].text == str(home / DEMO_PICTURE) else []
    prompt = given_prompt(arguments)
    with ExitStack() as stack:
        if arguments.quiet:
            stack.enter_context(_errors_only())
        return _segment_all(arguments, sources, files, prompt)


def _segment_all(
    arguments: argparse.Namespace,
    sources: "list[PictureSource]",
    files: list[Path],
    prompt: "Prompt",
) -> int:
    from samtrt.cli.parts.segment import StageTimes
    from samtrt.console import one_line, track
    from samtrt.encoders.engine import read_engine_info
    from samtrt.encoders.load import load_encoder

    times = StageTimes()

    def read(source: "PictureSource") -> Any:
        with times.stage("read picture"):
            image = source.read()
        prompt.check_inside(image.shape[:2])
        return image

    # One picture is read before the model is loaded, which takes longer.
    images = {sources[0]: read(sources[0])} if len(sources) == 1 else {}
    model = chosen_model(arguments)
    with times.stage("load mask decoder"):
        decoder = model.decoder(arguments.decoder)
    with times.stage("load engine"):
        encoder = load_encoder(
            model.engine, arguments.backend, parameters_sha256=decoder.parameters_sha256 or None
        )
    info = read_engine_info(model.engine)
    report = _Report(arguments, times, info.note or decoder.note)

    pairs = list(zip(sources, files, strict=True))
    shown = pairs if len(pairs) == 1 or arguments.quiet else track(pairs, "pictures", len(pairs))
    for source, file in shown:
        try:
            image = images[source] if source in images else read(source)
            report.add(source, image, prompt, encoder, decoder, file)
        except SamtrtError as error:
            if len(pairs) == 1:
                raise
            report.failed += 1
            report.entries.append({"picture": source.text, "error": str(error)})
            print(f"error: {one_line(str(error))}", file=sys.stderr)
    report.show(f"{info.backend} backend, {info.precision}, on {encoder.device}", str(decoder))
    return 1 if report.failed else 0


class _Report:
    """What a run has found, in the form that the user wants to see."""

    def __init__(self, arguments: argparse.Namespace, times: Any, note: str) -> None:
        self.arguments = arguments
        self.times = times
        self.note = note
        self.entries: list[dict[str, Any]] = []
        self.failed = 0
        self._masks: list[Any] = []

    def add(
        self, source: Any, image: Any, prompt: Any, encoder: Any, decoder: Any, file: Path
    ) -> None:
        """Segments one picture and writes its files."""
        from samtrt.cli.parts.segment import mask_record, segment, write_masks

        masks = segment(image, prompt, encoder, decoder, self.arguments.multimask, self.times)
        with self.times.stage("draw, write"):
            written = write_masks(file, image, masks, prompt)
        self._masks = masks
        entry: dict[str, Any] = {
            "picture": source.text,
            "height": image.shape[0],
            "width": image.shape[1],
            "files": [str(path) for path in written],
        }
        if self.arguments.json:
            entry["masks"] = [mask_record(mask) for mask in masks]
        else:
            best = max(masks, key=lambda mask: mask.score)
            entry["line"] = f"score {best.score:.3f}, {best.area:,} px"
        self.entries.append(entry)

    def show(self, encoder: str, decoder: str) -> None:
        """Prints it."""
        from rich.console import Console

        from samtrt.cli.parts.segment import print_masks, print_times
        from samtrt.console import one_line, print_json

        if self.arguments.json:
            print_json(
                {
                    "pictures": self.entries,
                    "encoder": encoder,
                    "decoder": decoder,
                    "milliseconds": {k: 1e3 * v for k, v in self.times.seconds.items()},
                    "note": self.note,
                }
            )
            return
        if self.arguments.quiet:
            return
        console = Console()
        if len(self.entries) == 1:
            print_masks(console, self._masks)
        print_times(console, self.times)
        print(f"encoder  {encoder}")
        print(f"decoder  {decoder}")
        for entry in self.entries:
            if "error" in entry:
                continue
            if len(self.entries) > 1:
                print(f"picture  {one_line(entry['picture'])}: {entry['line']}")
            for file in entry["files"]:
                print(f"written  {file}")
        if self.note:
            console.print(
                f"note     {self.note}", style="bold yellow", soft_wrap=True, highlight=False
            )


@contextmanager
def _errors_only() -> Iterator[None]:
    """Without what the package logs beneath errors."""
    logger = logging.getLogger("samtrt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

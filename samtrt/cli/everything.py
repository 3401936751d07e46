"""Segments everything in pictures and folders of them; resumes where it was interrupted."""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtrt.cli.options import Options
from samtrt.cli.parts.model import add_model, chosen_model
from samtrt.cli.parts.windows import add_windows, chosen_windows
from samtrt.errors import InputError, SamtrtError
from samtrt.files import write_json
from samtrt.formats.names import DEFAULT_TOLERANCE, EXPORTS, PAINTED, RECORD
from samtrt.hints import install

if TYPE_CHECKING:
    from samtrt.jobs.progress import FolderReport
    from samtrt.jobs.ray import Workers

# Option → its default; of whole numbers the bounds as well, both of them inside.
_FRACTIONS = {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "box_nms_thresh": 0.7}
_NUMBERS = {
    "points_per_side": (32, 1, 1_000),
    "points_per_batch": (64, 1, 65_536),
    "crop_n_layers": (0, 0, 8),
    "min_mask_region_area": (0, 0, 100_000_000),
}
_MOST_WORKERS = 10_000
# The parameters of examples/sam/sam_models/sam_demo.pth.
_DEMO_SHA256 = "31c794c14e45415adb3cf351bc11b08cc5875390d25a4e2527ff260378eb90f0"
_FORMATS = ", ".join(f"{name} ({text})" for name, text in EXPORTS.items())


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders (subfolders included), pictures, patterns such as 'photos/*.jpg'; lists of "
        "pictures (.txt), WebDataset's shards (.tar), tables (.parquet); the same in stores: "
        "s3://bucket/photos, gs://, az://, https://",
    )
    add_model(options)
    options.add(
        "--output-dir",
        type=_place,
        required=True,
        help="created where it is missing; or a place in a store: s3://bucket/masks, gs://, az://",
    )
    options.add(
        "--format",
        dest="formats",
        action="append",
        metavar="NAME[,NAME]",
        help="json (COCO, a file a picture, which is always written), png (the masks painted on "
        "the picture), embeddings (a safetensors file a picture, for --embeddings and "
        "SamPredictor.load_embedding), zarr (the same as zarr, NAME.zarr.zip), "
        f"{_FORMATS}; repeatable (default: json,png)",
    )
    options.add("--formats", action="extend", nargs="+", help=argparse.SUPPRESS)
    options.add(
        "--polygon-tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        metavar="PIXELS",
        help="how far a polygon's corners may be cut (default: 1; 0 follows every pixel)",
    )
    options.add(
        "--column",
        metavar="NAME",
        help="of .parquet sources: the column with the pictures' bytes or paths, where it is not "
        "image, bytes, path or file_name; image.bytes for a field",
    )
    options.add(
        "--embeddings",
        type=_place,
        metavar="DIR",
        help="take the embeddings that an earlier run has kept there in place of encoding",
    )
    add_windows(options)
    options.add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="segment these boxes or points, and not everything: COCO's detections or data set "
        "(.json), or .csv with file_name, x0, y0, x1, y1 or file_name, x, y, label",
    )
    options.add(
        "--multimask",
        action="store_true",
        help="with --prompts: of whole, part and subpart keep the mask with the best score",
    )
    options.add("--points-per-side", type=int, help="of the grid (default: 32)")
    options.add("--points-per-batch", type=int, help="decoded at once (default: 64)")
    options.add(
        "--pred-iou-thresh",
        type=float,
        help="least predicted quality of a mask, 0 to 1 (default: 0.88)",
    )
    options.add(
        "--stability-score-thresh",
        type=float,
        help="least IoU of a mask cut a little higher and lower, 0 to 1 (default: 0.95)",
    )
    options.add(
        "--box-nms-thresh",
        type=float,
        help="of two boxes with a larger IoU one stays, 0 to 1 (default: 0.7)",
    )
    options.add(
        "--crop-n-layers",
        type=int,
        help="also look at 4, 16, … parts of the picture, for small objects (default: 0)",
    )
    options.add(
        "--workers",
        type=int,
        metavar="N",
        help="share the work among N processes, each with a GPU or a part of the CPU's cores "
        "(needs Ray; default: one for each GPU of the machine)",
    )
    options.add(
        "--ray",
        metavar="ADDRESS",
        help="work on a Ray cluster, one worker for each of its GPUs: `auto`, HOST:6379",
    )
    options.add_json()
    options.add(
        "--min-mask-region-area",
        type=int,
        metavar="PIXELS",
        help="fill smaller holes and remove smaller islands (default: 0)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Segments, and prints what became of the pictures; status 1 where one was skipped."""
    settings = _checked(arguments)
    windowing = chosen_windows(arguments)
    formats = _formats(arguments.formats or ([RECORD] if windowing is not None else None))

    from samtrt.jobs.folder import check_job, segment_folder
    from samtrt.jobs.prompts import read_prompts
    from samtrt.jobs.windows import check_windows
    from samtrt.sam import load_sam

    output_dir: Path | str = arguments.output_dir
    tolerance, column = arguments.polygon_tolerance, arguments.column
    found = check_job(arguments.sources, output_dir, formats, tolerance, column)
    # Before the model, which takes longer.
    if windowing is not None:
        check_windows(windowing, formats, found)
    prompts = None if arguments.prompts is None else read_prompts(arguments.prompts)
    workers, idle = _workers(arguments)
    model = chosen_model(arguments)
    folders = model.engine.absolute(), model.parameter_folder().absolute()
    load = partial(load_sam, *folders, arguments.backend)
    report = segment_folder(
        load,
        found,
        output_dir,
        formats,
        tolerance=tolerance,
        workers=workers,
        prompts=prompts,
        embeddings=arguments.embeddings,
        windowing=windowing,
        **settings,
    )
    _print(report, output_dir)
    for hint in filter(None, [idle, *_hints(report, prompts is not None)]):
        print(f"note        {hint}")
    if arguments.json is not None:
        write_json(arguments.json, report.to_json())
    return 1 if report.failed else 0


def _workers(arguments: argparse.Namespace) -> "tuple[Workers | None, str]":
    """Who shares the work, None for this process alone; and what the user should know of it.

    Raises:
        SamtrtError: workers were asked for, and Ray is not installed.
    """
    import torch

    from samtrt.jobs.ray import Workers, require_ray

    count, address = arguments.workers, arguments.ray
    if count is not None and not 1 <= count <= _MOST_WORKERS:
        raise InputError(
            f"--workers is {count:,}; expected a whole number from 1 to {_MOST_WORKERS:,}"
        )
    if address is None and count is None:
        gpus = torch.cuda.device_count() if arguments.backend != "cpu" else 0
        if gpus < 2:
            return None, ""
        try:
            require_ray()
        except SamtrtError:
            hint = f"one of {gpus} GPUs has worked; `{install('ray')}` lets all of them"
            return None, hint
    elif address is None and count == 1:
        return None, ""
    require_ray()
    return Workers(count, address), ""


def _checked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The generator's settings.

    Raises:
        InputError: one is out of its bounds; the message names the option.
    """
    settings: dict[str, Any] = {}
    for name, usual in _FRACTIONS.items():
        value = _given(arguments, name, usual)
        if not 0 <= value <= 1:
            raise InputError(f"{_flag(name)} is {value:g}; expected a number from 0 to 1")
        settings[name] = value
    for name, (usual, least, most) in _NUMBERS.items():
        value = _given(arguments, name, usual)
        if not least <= value <= most:
            raise InputError(
                f"{_flag(name)} is {value:,}; expected a whole number from {least} to {most:,}"
            )
        settings[name] = value
    tolerance = arguments.polygon_tolerance
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"--polygon-tolerance is {tolerance:g}; expected 0 pixels or more")
    if arguments.prompts is None:
        if arguments.multimask:
            raise InputError("--multimask is of --prompts; everything always has three masks")
        return settings
    for name in (*_FRACTIONS, *_NUMBERS):
        if name != "points_per_batch" and getattr(arguments, name) is not None:
            raise InputError(f"{_flag(name)} is of everything, and not of --prompts; leave it out")
    return {
        "prompts_per_batch": settings["points_per_batch"],
        "multimask_output": arguments.multimask,
    }


def _given(arguments: argparse.Namespace, name: str, usual: Any) -> Any:
    value = getattr(arguments, name)
    return usual if value is None else value


def _place(text: str) -> Path | str:
    """A path, or an address in a store as it is."""
    return text if "://" in text else Path(text)


def _formats(given: Sequence[str] | None) -> list[str]:
    """The names in the order given, each once; commas part them as well."""
    names = [name.strip() for text in given or (RECORD, PAINTED) for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _print(report: "FolderReport", output_dir: Path | str) -> None:
    from samtrt.console import one_line
    from samtrt.jobs.sources import counted

    print(f"segmented   {len(report.segmented)} pictures, {report.masks} masks")
    print(f"resumed     {len(report.resumed)} pictures were done before")
    if report.ignored:
        print(f"ignored     {len(report.ignored)} files: {one_line(counted(report.ignored))}")
    if report.segmented:
        pace = f"{len(report.segmented) / report.seconds:.3g} pictures/s"
        workers = f"{report.workers} worker{'s' if report.workers > 1 else ''}"
        print(
            f"pace        {pace}, {report.masks / report.seconds:.3g} masks/s, {workers} "
            f"{100 * report.at_work:.0f} % at work"
        )
    if report.unknown:
        others = f"{report.unknown[0]}{', …' if len(report.unknown) > 1 else ''}"
        print(f"not here    {len(report.unknown)} pictures that prompts are for: {others}")
    print(f"skipped     {len(report.failed)} files")
    for name, reason in report.failed.items():
        print(f"            {one_line(str(name))}: {reason}")
    print(f"written     {output_dir}")
    for file in report.exported:
        if file != str(output_dir):
            print(f"            {file}")


def _hints(report: "FolderReport", prompted: bool) -> list[str]:
    """What a user may not expect of the result."""
    hints = []
    if not prompted and report.segmented and not report.masks:
        hints.append(
            "nothing passed the filters; lower --pred-iou-thresh or --stability-score-thresh, or "
            "take more --points-per-side"
        )
    if report.identity.parameters_sha256 == _DEMO_SHA256:
        hints.append(
            "this is the demo model, trained on synthetic scenes only; for photographs take one "
            "of Meta's checkpoints"
        )
    if report.identity.note:
        hints.append(report.identity.note)
    return hints

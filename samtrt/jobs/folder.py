"""Automatic masks for a folder of pictures: files beside files, what is done is not done again."""

import colorsys
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from samtrt.errors import InputError
from samtrt.files import sha256_of, write_json
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.reading import load_image, save_png
from samtrt.sam import Sam

FORMATS = ("json", "png")
_OPACITY = 0.5
_GOLDEN_RATIO = 0.618034  # steps of it spread hues evenly, however many there are


@dataclass
class FolderReport:
    """What became of each picture; paths are relative to the folder.

    Attributes:
        segmented: pictures segmented now, with the number of their masks.
        resumed: pictures whose outputs an earlier run with the same model and settings has left.
        failed: pictures that could not be used, with the reason in one line.
    """

    segmented: dict[Path, int] = field(default_factory=dict)
    resumed: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def segment_folder(
    sam: Sam,
    folder: str | Path,
    output_dir: str | Path,
    formats: Sequence[str] = FORMATS,
    show_progress: bool = True,
    **arguments: Any,
) -> FolderReport:
    """Segments every picture of a folder and its subfolders.

    For ``a/b.jpg`` it writes ``a/b.jpg.json`` (COCO: ``images``, ``annotations`` with compressed
    RLE, ``categories``; and ``samtrt``, what it was made from) and ``a/b.jpg.png`` (the picture
    with every mask in a colour of its own). A picture is passed over when both are there and were
    made from the same picture, model and arguments. Files that are no usable picture are reported
    and do not stop the rest.

    Args:
        sam: the model.
        folder: where the pictures are.
        output_dir: where the outputs go, in the same subfolders; created where missing.
        formats: which of ``"json"`` and ``"png"``; JSON is written always, because it is what an
            interrupted run is resumed by.
        show_progress: a progress bar on stderr, or a line a picture where that is no terminal.
        **arguments: of ``SamAutomaticMaskGenerator``, except ``output_mode``.

    Raises:
        InputError: no such folder, no pictures in it, or an unknown format or argument value.
        SamtrtError: an output cannot be written.
    """
    folder, output_dir = Path(folder), Path(output_dir)
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise InputError(
            f"unknown format {', '.join(sorted(unknown))}; expected {' or '.join(FORMATS)}"
        )
    generator = SamAutomaticMaskGenerator(sam, **arguments, output_mode="coco_rle")
    pictures = find_pictures(folder, output_dir)
    report = FolderReport()
    for name in _with_progress(pictures, report, show_progress):
        json_file, png_file = (output_dir / f"{name}.{suffix}" for suffix in FORMATS)
        try:
            origin = {
                "picture_sha256": sha256_of(folder / name),
                "engine_sha256": sam.engine_sha256,
                "arguments": arguments,
            }
            done = _origin_of(json_file) == _as_json(origin)
            if done and ("png" not in formats or png_file.is_file()):
                report.resumed.append(name)
                continue
            image = load_image(folder / name)
        except (InputError, OSError) as error:
            report.failed[name] = _reason(error)
            continue
        records = generator.generate(image)
        if "png" in formats:
            masks = [coco_decode_rle(record["segmentation"]) for record in records]
            save_png(png_file, paint_masks(image, masks))
        # Last: a JSON that is there says that everything is.
        write_json(json_file, {**coco_dataset(name, image, records), "samtrt": origin})
        report.segmented[name] = len(records)
    return report


def find_pictures(folder: Path, output_dir: Path | None = None) -> list[Path]:
    """The files below ``folder`` with a picture's suffix, relative to it, in order of their names.

    Hidden files and folders, and ``output_dir`` where it lies inside, are left out.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}; give a folder that holds pictures")
    suffixes = Image.registered_extensions()
    outputs = output_dir.resolve() if output_dir is not None else None
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        if outputs == folder.resolve() and _is_output(path):
            continue
        if outputs not in (None, folder.resolve()) and outputs in path.resolve().parents:
            continue
        found.append(name)
    if not found:
        raise InputError(f"no pictures in {folder}; expected files such as .jpg, .png or .webp")
    return found


def coco_dataset(
    name: Path, image: npt.NDArray[np.uint8], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """A COCO data set of one picture; the generator's further fields stay in the annotations."""
    height, width = image.shape[:2]
    return {
        "images": [{"id": 1, "width": width, "height": height, "file_name": name.as_posix()}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, **record}
            for number, record in enumerate(records, start=1)
        ],
        "categories": [{"id": 1, "name": "object"}],
    }


def paint_masks(
    image: npt.NDArray[np.uint8], masks: Sequence[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.uint8]:
    """The picture with each mask in a colour of its own; smaller masks lie on larger ones.

    Args:
        image: [H, W, 3] uint8, RGB.
        masks: bool [H, W] each.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    order = sorted(range(len(masks)), key=lambda index: -int(masks[index].sum()))
    color_of = np.zeros(image.shape[:2], dtype=np.int64)  # 0: no mask
    colors = np.zeros((len(masks) + 1, 3))
    for number, index in enumerate(order, start=1):
        color_of[masks[index]] = number
        hue = number * _GOLDEN_RATIO % 1.0
        colors[number] = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.75, 1.0))
    opacity = np.where(color_of > 0, _OPACITY, 0.0)[..., None]
    # A dark line between neighbours, so that similar colours still part.
    edge = np.zeros(image.shape[:2], dtype=bool)
    edge[:, 1:] |= color_of[:, 1:] != color_of[:, :-1]
    edge[1:] |= color_of[1:] != color_of[:-1]
    painted = image * (1 - opacity) + colors[color_of] * opacity
    painted[edge] *= 0.35
    return painted.round().astype(np.uint8)


def _with_progress(
    pictures: list[Path], report: FolderReport, show_progress: bool
) -> Iterator[Path]:
    """Yields the pictures, and tells of each what became of it."""
    in_lines = show_progress and not sys.stderr.isatty()
    bar = tqdm(pictures, unit="picture", disable=not show_progress or in_lines, dynamic_ncols=True)
    with bar:
        for number, name in enumerate(bar, start=1):
            bar.set_postfix_str(name.name)
            yield name
            if name in report.failed:
                outcome = f"skipped: {report.failed[name]}"
            elif name in report.segmented:
                outcome = f"{report.segmented[name]} masks"
            else:
                outcome = "already done"
            if in_lines:
                print(f"[{number}/{len(pictures)}] {name}: {outcome}", file=sys.stderr, flush=True)
            elif show_progress and name in report.failed:
                bar.write(f"{name}: {outcome}", file=sys.stderr)


def _origin_of(json_file: Path) -> Any:
    """What an earlier run's file was made from; None without a readable one."""
    try:
        return json.loads(json_file.read_text("utf-8"))["samtrt"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_output(path: Path) -> bool:
    """Whether this is the PNG of a picture beside it, written by an earlier run."""
    return path.suffix == ".png" and path.with_suffix("").is_file()


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"cannot be read ({error})"

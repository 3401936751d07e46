"""Automatic masks for a folder of pictures: files beside files, what is done is not done again."""

import errno
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from samtrt.console import ProgressBar, one_line
from samtrt.errors import InputError, SamtrtError
from samtrt.files import sha256_of, write_json
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.coco import coco_dataset
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.drawing import paint_in_order
from samtrt.pictures.reading import decode_image, read_file, read_png_texts, save_png
from samtrt.sam import Sam

FORMATS = ("json", "png")

_logger = logging.getLogger(__name__)
_MARK = "samtrt"  # the key in a JSON and the keyword in a PNG that this module has written
# Reasons why nothing more can be written at all. Any other is one picture's.
_NO_MORE_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass
class FolderReport:
    """What became of each picture; paths are relative to the folder.

    Attributes:
        segmented: pictures segmented now, with the number of their masks.
        resumed: pictures whose outputs an earlier run with the same model and settings has left.
        failed: pictures without outputs, with the reason in one line.
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
    with every mask in a colour of its own). A picture is passed over when both are there as an
    earlier run has written them, from the same picture, model and arguments. A picture that fails,
    whatever the reason, is reported and does not stop the rest; a failure that nobody foresaw is
    logged with its traceback. Files that this function has not written are never replaced.

    Args:
        sam: the model.
        folder: where the pictures are.
        output_dir: where the outputs go, in the same subfolders; created where missing.
        formats: which of ``"json"`` and ``"png"``; JSON is written always, because it is what an
            interrupted run is resumed by.
        show_progress: a progress bar on stderr, or a line a picture where that is no terminal.
        **arguments: of ``SamAutomaticMaskGenerator``, except ``output_mode`` and ``decoder``.

    Raises:
        InputError: no such folder, no pictures in it, or an unknown format or argument value.
        SamtrtError: no output can be written any more, as on a full disk.
    """
    folder, output_dir = Path(folder), Path(output_dir)
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise InputError(
            f"unknown format {', '.join(sorted(unknown))}; expected {' or '.join(FORMATS)}"
        )
    generator = SamAutomaticMaskGenerator(sam, **arguments, output_mode="coco_rle")
    pictures = find_pictures(folder, output_dir)
    recorded = json.loads(json.dumps(arguments, default=_plain))
    job = _Job(sam, folder, output_dir, "png" in formats, generator, recorded)
    report = FolderReport()
    with ProgressBar(len(pictures), show=show_progress) as bar:
        for number, name in enumerate(pictures, start=1):
            bar.describe(name.name)
            outcome = _outcome(job, name, report)
            bar.advance()
            if show_progress and not bar.visible:
                bar.print_line(f"[{number}/{len(pictures)}] {name}: {outcome}")
            elif bar.visible and name in report.failed:
                bar.print_line(f"{name}: {outcome}")
    return report


def _outcome(job: "_Job", name: Path, report: FolderReport) -> str:
    """Segments a picture and puts down what became of it; the same in words.

    Raises:
        SamtrtError: no output can be written any more.
    """
    try:
        masks = job.segment(name)
    except InputError as error:
        reason = str(error)
    except SamtrtError as error:
        if getattr(error.__cause__, "errno", None) in _NO_MORE_OUTPUT:
            raise
        reason = str(error)
    except (MemoryError, torch.OutOfMemoryError):
        reason = "does not fit into memory; scale it down"
    except Exception as error:
        _require_device(job.sam.device)
        _logger.exception("unexpected error at %s", one_line(str(job.folder / name)))
        reason = f"unexpected {type(error).__name__}: {error}; the log has its traceback"
    else:
        if masks is None:
            report.resumed.append(name)
            return "already done"
        report.segmented[name] = masks
        return f"{masks} masks"
    report.failed[name] = one_line(reason)
    return f"skipped: {report.failed[name]}"


class _Job:
    """What is the same for all pictures of a run."""

    def __init__(
        self,
        sam: Sam,
        folder: Path,
        output_dir: Path,
        painted: bool,
        generator: SamAutomaticMaskGenerator,
        arguments: dict[str, Any],
    ) -> None:
        self.sam = sam
        self.folder = folder
        self.output_dir = output_dir
        self.painted = painted
        self.generator = generator
        self.arguments = arguments

    def segment(self, name: Path) -> int | None:
        """Writes a picture's outputs; the number of its masks, or None where they were there.

        Raises:
            SamtrtError: the picture cannot be used, or an output not be written.
        """
        json_file, png_file = (self.output_dir / f"{name}.{suffix}" for suffix in FORMATS)
        content = read_file(self.folder / name)
        origin: dict[str, Any] = {
            "picture_sha256": hashlib.sha256(content).hexdigest(),
            "computed_by": self.sam.computed_by,
            "arguments": self.arguments,
        }
        if self._are_written(json_file, png_file, origin):
            return None
        image = decode_image(content, str(self.folder / name))
        self._check_outputs(json_file, png_file)
        records = self.generator.generate(image)
        if self.painted:
            by_area = sorted(records, key=lambda record: -record["area"])
            masks = (coco_decode_rle(record["segmentation"]) for record in by_area)
            save_png(png_file, paint_in_order(image, masks), {_MARK: origin["picture_sha256"]})
            origin["png_sha256"] = sha256_of(png_file)
        # Last: a JSON that is there says that everything is.
        dataset = coco_dataset(name, image.shape[:2], records)
        origin["dataset_sha256"] = _sha256_of_json(dataset)
        write_json(json_file, {**dataset, _MARK: origin})
        return len(records)

    def _are_written(self, json_file: Path, png_file: Path, origin: dict[str, Any]) -> bool:
        """Whether the outputs are those of an earlier run from the same origin, byte by byte."""
        written = _read_json(json_file)
        mark = written.pop(_MARK, None)
        if not isinstance(mark, dict):
            return False
        expected = {**origin, "dataset_sha256": _sha256_of_json(written)}
        if self.painted:
            try:
                expected["png_sha256"] = sha256_of(png_file)
            except OSError:
                return False
        return {key: mark.get(key) for key in expected} == expected

    def _check_outputs(self, json_file: Path, png_file: Path) -> None:
        """Refuses, before the encoder runs, what cannot be written or was written by others."""
        png_is_ours = is_painting(png_file)
        # A damaged JSON beside our PNG is ours as well.
        ours = {json_file: _MARK in _read_json(json_file) or png_is_ours}
        if self.painted:
            ours[png_file] = png_is_ours
        for file, replaceable in ours.items():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                there = file.is_symlink() or file.exists()
            except OSError as error:
                reason = f"{error.strerror}; give another output folder"
                raise SamtrtError(f"cannot write {file}: {reason}") from error
            if there and not (replaceable and file.is_file()):
                raise InputError(
                    f"{file} is there, and no earlier run has written it; "
                    "move it away, or give another output folder"
                )


def find_pictures(folder: Path, output_dir: Path | None = None) -> list[Path]:
    """The files below ``folder`` with a picture's suffix, relative to it, in order of their names.

    Hidden files and folders, ``output_dir`` where it lies inside, and the PNGs of earlier runs
    where it is ``folder`` itself, are left out.

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
        if hidden or path.suffix.lower() not in suffixes or not _is_file(path):
            continue
        if outputs == folder.resolve() and path.suffix == ".png" and is_painting(path):
            continue
        if outputs not in (None, folder.resolve()) and outputs in path.resolve().parents:
            continue
        found.append(name)
    if not found:
        raise InputError(f"no pictures in {folder}; expected files such as .jpg, .png or .webp")
    return found


def is_painting(path: Path) -> bool:
    """Whether this is a PNG that an earlier run has written."""
    return _MARK in read_png_texts(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True  # reading it will say why it cannot be read


def _plain(value: Any) -> Any:
    """An array, a tensor or one of their numbers as JSON has it."""
    try:
        return value.tolist()
    except AttributeError:
        raise InputError(
            f"an argument is of the type {type(value).__name__}; expected numbers, texts or arrays"
        ) from None


def _read_json(json_file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file, or none that can be read."""
    try:
        value = json.loads(json_file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sha256_of_json(value: Any) -> str:
    """Of a value as JSON has it, however a file of it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _require_device(device: torch.device) -> None:
    """Raises where a failed kernel has made the GPU useless to this process: nothing would work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

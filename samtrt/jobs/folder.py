"""Automatic masks for many pictures: files beside files, what is done is not done again."""

import errno
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from samtrt.console import SECONDS_A_LINE, ProgressBar, one_line
from samtrt.errors import InputError, SamtrtError
from samtrt.files import check_writable
from samtrt.formats.export import check_exports, export, output_of
from samtrt.formats.names import DEFAULT_TOLERANCE, EXPORTS, FORMATS, PAINTED, RECORD
from samtrt.jobs.record import Records
from samtrt.jobs.sources import Sources, find_sources
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.sam import Sam

_logger = logging.getLogger(__name__)
# Reasons why nothing more can be written at all. Any other is one picture's.
_NO_MORE_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

OneOrMore = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass
class FolderReport:
    """What became of each picture; paths are relative to the folder.

    Attributes:
        segmented: pictures segmented now, with the number of their masks.
        resumed: pictures whose outputs an earlier run with the same model and settings has left.
        failed: pictures without outputs, with the reason in one line.
        ignored: files that are no pictures of the run, with the reason in a word or two.
        exported: the files of further formats: of all pictures, or the output folder.
    """

    segmented: dict[Path, int] = field(default_factory=dict)
    resumed: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    ignored: dict[Path, str] = field(default_factory=dict)
    exported: list[Path] = field(default_factory=list)


def segment_folder(
    sam: Sam,
    sources: OneOrMore,
    output_dir: str | Path,
    formats: Sequence[str] = (RECORD, PAINTED),
    show_progress: bool = True,
    tolerance: float = DEFAULT_TOLERANCE,
    **arguments: Any,
) -> FolderReport:
    """Segments every picture of a folder and its subfolders, or of several sources.

    For ``a/b.jpg`` it writes ``a/b.jpg.json`` (COCO: ``images``, ``annotations`` with compressed
    RLE, ``categories``; and ``samtrt``, what it was made from) and ``a/b.jpg.png`` (the picture
    with every mask in a colour of its own). A picture is passed over when both are there as an
    earlier run has written them, from the same picture, model and arguments. A picture that fails,
    whatever the reason, is reported and does not stop the rest; a failure that nobody foresaw is
    logged with its traceback. Files that this function has not written are never replaced.

    Further formats (``samtrt.formats``) are made at the end from the JSON of every picture that
    has one, those of earlier runs included.

    Args:
        sam: the model.
        sources: a folder, a picture or a pattern, or several (``find_sources``).
        output_dir: where the outputs go, in the same subfolders; created where missing.
        formats: of ``samtrt.formats.names.FORMATS``; JSON is written always, because it is what
            an interrupted run is resumed by.
        show_progress: a progress bar on stderr, or a line a picture where that is no terminal.
        tolerance: of polygons, in pixels (``formats.polygons.outline``).
        **arguments: of ``SamAutomaticMaskGenerator``, except ``output_mode`` and ``decoder``.

    Raises:
        InputError: no such source, no pictures in it, an unknown format or argument value, or an
            output folder that cannot be written.
        SamtrtError: no output can be written any more, as on a full disk; or a format's library
            is missing.
    """
    output_dir = Path(output_dir)
    found = check_job(sources, output_dir, formats, tolerance)
    generator = SamAutomaticMaskGenerator(sam, **arguments, output_mode="coco_rle")
    recorded = json.loads(json.dumps(arguments, default=_plain))
    records = Records(sam, output_dir, PAINTED in formats, generator, recorded)
    report = FolderReport(failed=dict(found.unreadable), ignored=found.ignored)
    with ProgressBar(len(found.pictures), show=show_progress) as bar:
        for number, (name, file) in enumerate(found.pictures.items(), start=1):
            shown = _Shown(bar, f"[{number}/{len(found.pictures)}] {name}", show_progress)
            shown.begin(name)
            shown.end(_outcome(records, name, file, report, shown), name in report.failed)
    _export_all(records, formats, tolerance, report, list(found.pictures), show_progress)
    return report


def check_job(
    sources: OneOrMore, output_dir: Path, formats: Sequence[str], tolerance: float
) -> Sources:
    """What ``segment_folder`` refuses of its sources and formats; before a model is loaded.

    Raises:
        InputError, SamtrtError: as ``segment_folder``.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise InputError(f"unknown format {', '.join(sorted(unknown))}; expected {names}")
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"the polygons' tolerance is {tolerance}; expected 0 pixels or more")
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = find_sources(several, output_dir)
    check_exports(_exports(formats), output_dir, found.pictures)
    check_writable(output_dir)
    return found


class _Shown:
    """What is seen of a picture at work: in the bar's text, or in lines of their own.

    Args:
        bar: of all pictures.
        head: begins a line where there is no bar.
        show: False for silence.
    """

    def __init__(self, bar: ProgressBar, head: str, show: bool) -> None:
        self.bar = bar
        self.head = head
        self.show = show
        self.name = ""
        self.last_line = time.monotonic()

    def begin(self, name: Path) -> None:
        """The picture is being read."""
        self.name = name.name
        self.bar.describe(self.name)

    def progress(self, done: int, total: int) -> None:
        """So many points of its grid are done."""
        points = f"{done:,} of {total:,} points"
        self.bar.describe(f"{self.name}  {points}")
        now = time.monotonic()
        if self.show and not self.bar.visible and now - self.last_line >= SECONDS_A_LINE:
            self.bar.print_line(f"{self.head}: {points}")
            self.last_line = now

    def end(self, outcome: str, failed: bool) -> None:
        """The picture is done, well or not."""
        self.bar.advance()
        if self.show and (failed or not self.bar.visible):
            self.bar.print_line(f"{self.head}: {outcome}")


def _outcome(records: Records, name: Path, file: Path, report: FolderReport, shown: _Shown) -> str:
    """Segments a picture and puts down what became of it; the same in words.

    Raises:
        SamtrtError: no output can be written any more.
    """
    try:
        masks = records.segment(name, file, shown.progress)
    except InputError as error:
        reason = str(error)
    except SamtrtError as error:
        if getattr(error.__cause__, "errno", None) in _NO_MORE_OUTPUT:
            raise
        reason = str(error)
    except (MemoryError, torch.OutOfMemoryError):
        reason = "does not fit into memory; scale it down"
    except Exception as error:
        _require_device(records.sam.device)
        _logger.exception("unexpected error at %s", one_line(str(file)))
        reason = f"unexpected {type(error).__name__}: {error}; the log has its traceback"
    else:
        if masks is None:
            report.resumed.append(name)
            return "already done"
        report.segmented[name] = masks
        return f"{masks} masks"
    report.failed[name] = one_line(reason)
    return f"skipped: {report.failed[name]}"


def _export_all(
    records: Records,
    formats: Sequence[str],
    tolerance: float,
    report: FolderReport,
    names: list[Path],
    show_progress: bool,
) -> None:
    """Makes the further formats of all pictures that have masks in the end."""
    done = [name for name in names if name not in report.failed]
    for kind in _exports(formats) if done else ():
        with ProgressBar(len(done), show=show_progress, keep=False) as bar:
            bar.describe(kind)

            def each(bar: ProgressBar = bar):  # type: ignore[no-untyped-def]
                for name in done:
                    yield records.read(name)
                    bar.advance()

            export(kind, records.output_dir, each(), tolerance)
        report.exported.append(output_of(kind, records.output_dir, None))


def _exports(formats: Sequence[str]) -> list[str]:
    return [kind for kind in EXPORTS if kind in formats]


def _plain(value: Any) -> Any:
    """An array, a tensor or one of their numbers as JSON has it."""
    try:
        return value.tolist()
    except AttributeError:
        raise InputError(
            f"an argument is of the type {type(value).__name__}; expected numbers, texts or arrays"
        ) from None


def _require_device(device: torch.device) -> None:
    """Raises where a failed kernel has made the GPU useless to this process: nothing would work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

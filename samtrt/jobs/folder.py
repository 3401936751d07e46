"""Automatic masks for many pictures: files beside files, what is done is not done again."""

import errno
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from samtrt.checkpoints.zarr_file import require_zarr
from samtrt.console import ProgressBar, one_line
from samtrt.errors import InputError, SamtrtError
from samtrt.formats.export import check_exports, export, output_of
from samtrt.formats.names import (
    DEFAULT_TOLERANCE,
    EMBEDDED,
    EMBEDDED_ZARR,
    EXPORTS,
    FORMATS,
    PAINTED,
    RECORD,
)
from samtrt.jobs.alone import Alone
from samtrt.jobs.places import is_url
from samtrt.jobs.progress import FolderReport, JobProgress
from samtrt.jobs.prompts import Asked, PromptFile, read_prompts
from samtrt.jobs.ray import Crew, Workers, started
from samtrt.jobs.record import EMBEDDING, EMBEDDING_ZARR, PAINTING, Records
from samtrt.jobs.segmenting import (
    Failed,
    Finished,
    Item,
    Outcome,
    Resumed,
    Settings,
    attempt,
)
from samtrt.jobs.sources import Sources, find_sources
from samtrt.jobs.targets import FolderTarget, target_of
from samtrt.jobs.windows import WindowedPictures, Windowing, check_windows
from samtrt.sam import Sam

_logger = logging.getLogger(__name__)
# Reasons why nothing more can be written at all. Any other is one picture's.
_NO_MORE_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_THREADS = 8  # pictures whose files are written, or looked at, at once

_In = TypeVar("_In")
_Out = TypeVar("_Out")
OneOrMore = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def segment_folder(
    sam: Sam | Callable[[], Sam],
    sources: OneOrMore | Sources,
    output_dir: str | Path,
    formats: Sequence[str] = (RECORD, PAINTED),
    show_progress: bool = True,
    tolerance: float = DEFAULT_TOLERANCE,
    workers: Workers | None = None,
    prompts: str | Path | PromptFile | None = None,
    embeddings: str | Path | None = None,
    windowing: Windowing | None = None,
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
    has one, those of earlier runs included. All files are written by this process, however many
    workers there are; a second job on the same output folder is refused.

    Args:
        sam: the model, or what loads it; with ``workers`` the latter, which must be picklable.
        sources: a folder, a picture or a pattern, or several (``find_sources``); or what
            ``check_job`` has found of them.
        output_dir: where the outputs go, in the same subfolders; created where missing. Or a place
            in a store, as ``s3://bucket/masks`` (``jobs.targets``).
        formats: of ``samtrt.formats.names.FORMATS``; JSON is written always, because it is what
            an interrupted run is resumed by.
        show_progress: a progress bar on stderr, or a line a picture where that is no terminal.
        tolerance: of polygons, in pixels (``formats.polygons.outline``).
        workers: which work with Ray; None for this process alone.
        prompts: file of boxes or points (``jobs.prompts``), or what ``read_prompts`` has read of
            one: these are segmented, and not everything. Pictures that it does not name get no
            masks.
        embeddings: output folder, or place in a store, of an earlier job with the format
            ``embeddings`` or ``zarr``: these are taken in place of encoding. A picture without one,
            or with that of another encoder, fails.
        windowing: cuts pictures that are larger than a window, and TIFFs, whose place on Earth
            then is known; the masks are those of the whole picture (``jobs.windows``).
        **arguments: of ``SamAutomaticMaskGenerator``, except ``output_mode`` and ``decoder``; with
            ``prompts`` of ``SamPromptedMaskGenerator``.

    Raises:
        InputError: no such source, no pictures in it, an unknown format or argument value, a file
            of prompts that cannot be, or an output folder that cannot be written.
        SamtrtError: no output can be written any more, as on a full disk; another process is at
            work in the output folder; a format's library, or Ray, is missing.
    """
    target = target_of(output_dir)
    found = (
        sources
        if isinstance(sources, Sources)
        else check_job(sources, output_dir, formats, tolerance)
    )
    recorded = json.loads(json.dumps(arguments, default=_plain))
    if windowing is not None:
        check_windows(windowing, formats, found)
        if embeddings is not None:
            raise InputError("an embedding is of a whole picture; leave windows or embeddings out")
        recorded["windows"] = windowing.to_json()
    given = None if embeddings is None else _from_everywhere(embeddings)
    kinds = {EMBEDDED: EMBEDDING, EMBEDDED_ZARR: EMBEDDING_ZARR}
    embedded = tuple(suffix for name, suffix in kinds.items() if name in formats)
    settings = Settings(arguments, recorded, PAINTED in formats, embedded, given)
    report = FolderReport(failed=dict(found.unreadable), ignored=found.ignored)
    asked: Mapping[Path, tuple[Asked, ...]] = {}
    if prompts is not None:
        file = prompts if isinstance(prompts, PromptFile) else read_prompts(Path(prompts))
        asked, report.unknown = file.for_pictures(found.pictures)
        settings = replace(settings, prompted=True, categories=file.categories)
    with target.claimed(), _crew(sam, settings, workers) as crew:
        report.identity, report.workers = crew.identity, crew.count
        computed_by = crew.identity.computed_by
        beside = [*([PAINTING] if settings.painted else []), *settings.embedded]
        records = Records(target, beside, computed_by)
        items = _items(found, records, settings, asked)
        windows, total = None, len(found.pictures)
        if windowing is not None:
            windows = WindowedPictures(records, settings, windowing, crew.identity)
            cut = list(windows.items(items))
            items, total = iter(cut), len(cut)
        with JobProgress(total, crew.count, show_progress) as progress:
            write = partial(_write, records=records)
            with closing(crew.outcomes(items, progress)) as outcomes:
                each = _several if crew.together else _one_by_one
                with closing(each(write, outcomes)) as written:
                    for outcome in written:
                        whole = windows.settle(outcome) if windows is not None else None
                        _count(outcome, progress)
                        if outcome.item.part_of is None:
                            _put_down(outcome, report)
                        if windows is not None and whole is not None:
                            whole = write(whole)
                            _put_down(whole, report)
                            if isinstance(whole, Finished):
                                windows.clear(whole.item.name)
        report.seconds, report.at_work = progress.pace.seconds, progress.pace.at_work
        names = list(found.pictures)
        _in_order(report, names)
        _export_all(records, formats, tolerance, settings, report, names, show_progress)
    return report


def check_job(
    sources: OneOrMore,
    output_dir: str | os.PathLike[str],
    formats: Sequence[str],
    tolerance: float,
    column: str | None = None,
) -> Sources:
    """What ``segment_folder`` refuses of its sources and formats; before a model is loaded.

    Args:
        column: see ``find_sources``.

    Returns:
        The pictures.

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
    if EMBEDDED_ZARR in formats:
        require_zarr()
    target = target_of(output_dir)
    if isinstance(target, FolderTarget):
        found = find_sources(several, target.root, column)
        check_exports(_exports(formats), target.root, found.pictures)
    else:
        found = find_sources(several, str(target), column)
        check_exports(_exports(formats), Path(), found.pictures, target.look)
    target.check()
    return found


def _crew(
    sam: Sam | Callable[[], Sam], settings: Settings, workers: Workers | None
) -> AbstractContextManager[Alone | Crew]:
    """Who does the work."""
    if workers is None:
        return nullcontext(Alone(sam if isinstance(sam, Sam) else sam(), settings))
    if isinstance(sam, Sam):
        raise InputError(
            "workers load the model themselves; give what loads it, as "
            "functools.partial(load_sam, folder), in place of a model"
        )
    return started(sam, settings, workers)


def _items(
    found: Sources, records: Records, settings: Settings, asked: Mapping[Path, tuple[Asked, ...]]
) -> Iterator[Item | Failed | Resumed]:
    """The pictures, with what is known of their outputs; one whose outputs cannot be has failed."""

    def look(item: Item) -> Item:
        return replace(item, known=records.known(item.name, settings.recorded_for(item.asked)))

    each = (
        Item(number, name, place, asked=asked.get(name, ()))
        for number, (name, place) in enumerate(found.in_reading_order())
    )
    looked = partial(attempt, look)
    yield from _several(looked, each) if records.target.is_far else map(looked, each)


def _one_by_one(do: Callable[[_In], _Out], values: Iterable[_In]) -> Generator[_Out, None, None]:
    yield from map(do, values)


def _several(do: Callable[[_In], _Out], values: Iterable[_In]) -> Generator[_Out, None, None]:
    """``map``, but several at once, since most of the time is spent waiting for disk or store."""
    waiting: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="files") as pool:
        for value in values:
            waiting.append(pool.submit(do, value))
            while waiting and (waiting[0].done() or len(waiting) > 2 * _THREADS):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write(outcome: Outcome, records: Records) -> Outcome:
    """Writes a picture's files, where it has any now; says what became of it.

    Raises:
        SamtrtError: no output can be written any more.
    """
    if not isinstance(outcome, Finished):
        return outcome
    try:
        records.write(outcome.item.name, outcome.files)
    except SamtrtError as error:
        if getattr(error.__cause__, "errno", None) in _NO_MORE_OUTPUT:
            raise
        return Failed(outcome.item, one_line(str(error)))
    return outcome


def _count(outcome: Outcome, progress: JobProgress) -> None:
    """A picture, or a window of one, is done, well or not."""
    pace = progress.pace
    pace.done += 1
    if isinstance(outcome, Finished):
        pace.masks += outcome.masks
        pace.busy += outcome.seconds
        text = f"{outcome.masks} masks"
    elif isinstance(outcome, Resumed):
        text = "already done"
    else:
        text = f"skipped: {outcome.reason}"
        pace.failed += 1
    progress.end(outcome.item.name, text, isinstance(outcome, Failed))


def _put_down(outcome: Outcome, report: FolderReport) -> None:
    """What became of a picture, in the report."""
    item = outcome.item
    if isinstance(outcome, Finished):
        report.segmented[item.name] = outcome.masks
    elif isinstance(outcome, Resumed):
        report.resumed.append(item.name)
    else:
        if outcome.details:
            where = f"unexpected error at {one_line(str(item.place))}"
            details = "" if outcome.error else f"\n{outcome.details}"
            _logger.error("%s%s", where, details, exc_info=outcome.error)
        report.failed[item.name] = outcome.reason


def _in_order(report: FolderReport, names: list[Path]) -> None:
    """The report in the order of the pictures, however the workers were done with them."""
    order = {name: number for number, name in enumerate(names)}
    report.segmented = {name: report.segmented[name] for name in names if name in report.segmented}
    report.resumed.sort(key=order.__getitem__)
    last = len(order)
    by_name = sorted(report.failed.items(), key=lambda item: order.get(item[0], last))
    report.failed = dict(by_name)


def _export_all(
    records: Records,
    formats: Sequence[str],
    tolerance: float,
    settings: Settings,
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

            with records.target.exporting() as folder:
                export(kind, folder, each(), tolerance, settings.categories)
        report.exported.append(records.target.shown(output_of(kind, Path())))


def _from_everywhere(place: str | os.PathLike[str]) -> Path | str:
    """A place as workers find it, which stand in other folders."""
    text = os.fspath(place)
    return text if is_url(text) else Path(text).absolute()


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

"""Pictures that are worked on by windows: cut, each window a picture of its own, merged again.

A window's JSON lies in a folder NAME.windows until all of a picture are there; then they become the
picture's JSON, and the folder goes. So a job that was interrupted goes on within a picture.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from samtrt.errors import InputError
from samtrt.formats.names import WITHOUT_PIXELS
from samtrt.jobs.merging import Records, Window, merged, moved
from samtrt.jobs.places import Part, Place, Remote, digest_of, raster_source
from samtrt.jobs.prompts import Asked
from samtrt.jobs.record import Records as Outputs
from samtrt.jobs.segmenting import (
    Failed,
    Finished,
    Identity,
    Item,
    Outcome,
    Resumed,
    Segmented,
    Settings,
    attempt,
    finish,
)
from samtrt.jobs.sources import Sources
from samtrt.masks.prompted import asked_as, inside
from samtrt.pictures.rasters import Raster, Reading, look_at, require_rasterio
from samtrt.pictures.reading import MAX_PIXELS

LEAST_WINDOW, MOST_WINDOW = 64, 10_000
_FOLDER = ".windows"
_FILE = re.compile(r"\d{7}_\d{7}_\d+x\d+\.json|\..*\.samtrt-new.*")
# What GDAL reads as well; pictures of other kinds are whole always.
_SUFFIXES = (".tif", ".tiff", ".jpg", ".jpeg", ".png", ".jp2", ".webp", ".bmp")
_AROUND = 1.25  # a window that is made for a prompt has so much of its sides
_OWN = ("id", "image_id", "iscrowd", "bbox", "score")  # that a data set gives its annotations


@dataclass(frozen=True)
class Windowing:
    """How pictures are cut.

    Attributes:
        side: of a window, in pixels.
        overlap: pixels that neighbours have in common.
        reading: how bands become RGB.

    Raises:
        InputError: a window that is too small or too large, or overlaps by more than its half.
    """

    side: int
    overlap: int
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        if not LEAST_WINDOW <= self.side <= MOST_WINDOW:
            raise InputError(
                f"a window of {self.side:,} pixels; expected {LEAST_WINDOW} to {MOST_WINDOW:,}"
            )
        if not 0 <= self.overlap <= self.side // 2:
            raise InputError(
                f"windows of {self.side:,} pixels that overlap by {self.overlap:,}; expected 0 to "
                f"{self.side // 2:,}"
            )

    def to_json(self) -> dict[str, Any]:
        """What masks depend on."""
        bands, value_range = self.reading.bands, self.reading.value_range
        return {
            "side": self.side,
            "overlap": self.overlap,
            "bands": None if bands is None else list(bands),
            "value_range": None if value_range is None else list(value_range),
        }

    def grid(self, size: tuple[int, int]) -> list[Window]:
        """The windows of a picture (H, W), row by row; the last ones end where it does."""
        rows, columns = (self._starts(length) for length in size)
        height, width = (min(self.side, length) for length in size)
        return [Window(x, y, width, height) for y in rows for x in columns]

    def _starts(self, length: int) -> list[int]:
        last, step = max(0, length - self.side), self.side - self.overlap
        return [*range(0, last, step), last]


def check_windows(windowing: Windowing, formats: Collection[str], found: Sources) -> None:
    """Refuses what is not done by windows.

    Raises:
        InputError: formats that need a whole picture's pixels, or pictures in tars or tables.
        SamtrtError: rasterio is not installed.
    """
    require_rasterio()
    if whole := [name for name in formats if name not in WITHOUT_PIXELS]:
        raise InputError(
            f"the format {whole[0]} takes pictures as a whole; with windows there are "
            f"{', '.join(WITHOUT_PIXELS)}"
        )
    for name, place in found.pictures.items():
        if not isinstance(place, Path | Remote):
            raise InputError(
                f"{name} lies in a tar or a table, whose pictures are read as a whole; leave "
                "windows out, or give files"
            )


@dataclass
class _Cut:
    """A picture that is being worked on.

    Attributes:
        item: the picture, with its prompts, boxes cut to it.
        windows: each, and which prompts it has.
        left: how many are not done.
        failed: the first that could not be done.
    """

    item: Item
    sha256: str
    raster: Raster
    windows: list[tuple[Window, list[int]]]
    left: int
    failed: Failed | None = None


class WindowedPictures:
    """The pictures of a job by windows.

    Args:
        outputs: of the job.
        settings: with ``windowing``.
        identity: of the model.
    """

    def __init__(
        self, outputs: Outputs, settings: Settings, windowing: Windowing, identity: Identity
    ) -> None:
        self._outputs = outputs
        self._settings = settings
        self._windowing = windowing
        self._identity = identity
        self._cut: dict[Path, _Cut] = {}

    def items(self, items: Iterable[Item | Failed | Resumed]) -> Iterator[Item | Failed | Resumed]:
        """The windows of pictures that have several, or a place on Earth; others as they are."""
        number = 0
        for item in items:
            found = attempt(self._items_of, item)
            for one in found if isinstance(found, list) else [found]:
                yield replace(one, number=number) if isinstance(one, Item) else one
                number += 1

    def settle(self, outcome: Outcome) -> Outcome | None:
        """What has become of a picture, when this was the last of its windows."""
        name = outcome.item.part_of
        if name is None:
            return None
        cut = self._cut[name]
        cut.left -= 1
        if isinstance(outcome, Failed) and cut.failed is None:
            cut.failed = outcome
        if cut.left:
            return None
        del self._cut[name]
        if cut.failed is not None:
            window = cut.failed.item.place
            shown = window.window.box if isinstance(window, Part) else ""
            return replace(cut.failed, item=cut.item, reason=f"window {shown}: {cut.failed.reason}")
        found: Outcome = attempt(lambda _: self._merge(cut), cut.item)
        return found

    def clear(self, name: Path) -> None:
        """Removes the windows' files of a picture whose own is there."""
        target, folder = self._outputs.target, name.with_name(f"{name.name}{_FOLDER}")
        files = [file for file in target.below(folder) if _FILE.fullmatch(file.name)]
        with suppress(OSError):  # what is left does no harm
            target.remove(files, folder)

    def _items_of(self, item: Item) -> list[Item | Failed | Resumed] | Item | Resumed:
        place = item.place
        assert isinstance(place, Path | Remote)
        if item.name.suffix.lower() not in _SUFFIXES:
            return item
        raster = look_at(*raster_source(place))
        if max(raster.size) <= self._windowing.side and not raster.is_tiff:
            return item
        raster.check_upright(str(place))
        sha256 = digest_of(place)
        if sha256 == item.known:
            self.clear(item.name)
            return Resumed(item)
        prompts = inside([one.prompt for one in item.asked], raster.size)
        asked = tuple(
            replace(one, prompt=prompt) for one, prompt in zip(item.asked, prompts, strict=True)
        )
        cut = _Cut(replace(item, asked=asked), sha256, raster, self._windows(raster, asked), 0)
        cut.left = len(cut.windows)
        self._cut[item.name] = cut
        return [attempt(self._known, one) for one in self._parts(cut, place)]

    def _known(self, item: Item) -> Item:
        recorded = self._settings.recorded_for(item.asked)
        return replace(item, known=self._outputs.known(item.name, recorded))

    def _windows(self, raster: Raster, asked: Sequence[Asked]) -> list[tuple[Window, list[int]]]:
        grid = self._windowing.grid(raster.size)
        if not self._settings.prompted:
            return [(window, []) for window in grid]
        found: dict[Window, list[int]] = {}
        for number, one in enumerate(asked):
            window = self._window_of(one, grid, raster.size)
            found.setdefault(window, []).append(number)
        return list(found.items()) or [(grid[0], [])]

    def _window_of(self, asked: Asked, grid: Sequence[Window], size: tuple[int, int]) -> Window:
        """The window in whose middle a prompt lies most; one of its own where none has all of it.

        Raises:
            InputError: it would be too large.
        """
        x0, y0, x1, y1 = asked.prompt.bounds
        middle = (x0 + x1) / 2, (y0 + y1) / 2

        def distance(window: Window) -> float:
            x, y, width, height = window.box
            return math.hypot(x + width / 2 - middle[0], y + height / 2 - middle[1])

        around = [
            window
            for window in grid
            if window.x <= x0 and window.y <= y0
            and x1 <= window.x + window.width and y1 <= window.y + window.height
        ]  # fmt: skip
        if around:
            return min(around, key=distance)
        side = max(self._windowing.side, math.ceil(_AROUND * max(x1 - x0, y1 - y0)))
        height, width = (min(side, length) for length in size)
        if height * width > MAX_PIXELS:
            raise InputError(
                f"a prompt of {x1 - x0:g}×{y1 - y0:g} pixels takes a window of {width}×{height}, "
                f"and at most {MAX_PIXELS / 1e6:g} megapixels are read at once"
            )
        x = min(max(0, round(middle[0] - width / 2)), size[1] - width)
        y = min(max(0, round(middle[1] - height / 2)), size[0] - height)
        return Window(x, y, width, height)

    def _parts(self, cut: _Cut, place: Path | Remote) -> Iterator[Item]:
        for window, numbers in cut.windows:
            asked = tuple(
                replace(cut.item.asked[number], prompt=prompt.moved(-window.x, -window.y))
                for number in numbers
                for prompt in (cut.item.asked[number].prompt,)
            )
            part: Place = Part(place, window, self._windowing.reading)
            yield Item(0, _name_of(cut.item.name, window), part, "", asked, cut.item.name)

    def _merge(self, cut: _Cut) -> Finished:
        """The picture's JSON, from those of its windows."""
        windows = [window for window, _ in cut.windows]

        @lru_cache(maxsize=8)
        def records_of(number: int) -> Records:
            picture = self._outputs.read(_name_of(cut.item.name, windows[number]))
            return picture.annotations

        if self._settings.prompted:
            records = _prompted(cut, records_of)
        else:
            records = merged(windows, records_of, cut.raster.size)
        plain = [
            {key: value for key, value in record.items() if key not in _OWN} for record in records
        ]
        whole = Segmented(
            cut.item, cut.sha256, cut.raster.size, plain, 0.0,
            georeference=cut.raster.georeference,
        )  # fmt: skip
        return finish(whole, self._settings, self._identity)


def _prompted(cut: _Cut, records_of: Any) -> Records:
    """A mask for each prompt, in their order; each is whole in its window."""
    found: dict[int, dict[str, Any]] = {}
    for index, (window, numbers) in enumerate(cut.windows):
        for number, record in zip(numbers, records_of(index), strict=True):
            asked = asked_as(cut.item.asked[number].prompt)  # as it was, whatever was rounded
            found[number] = {**moved(record, window, cut.raster.size), **asked}
    return [found[number] for number in sorted(found)]


def _name_of(picture: Path, window: Window) -> Path:
    x, y, width, height = window.box
    return picture.with_name(f"{picture.name}{_FOLDER}") / f"{y:07}_{x:07}_{width}x{height}"

"""What is seen of a job: a bar or lines while it runs, a summary of it at the end."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtrt.console import SECONDS_A_LINE, ProgressBar
from samtrt.jobs.segmenting import Identity

_PERCENT = 100


class Pace:
    """How fast a job goes.

    Args:
        total: its pictures.
        workers: that share the work.

    Attributes:
        done, masks, failed: pictures done, masks found and pictures failed, so far.
        busy: seconds of all workers' time.
    """

    def __init__(self, total: int, workers: int) -> None:
        self.total = total
        self.workers = workers
        self.done = self.masks = self.failed = 0
        self.busy = 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self._start

    @property
    def at_work(self) -> float:
        """The share of the workers' time that they were at work, 0 to 1."""
        return min(1.0, self.busy / max(self.seconds * self.workers, 1e-9))

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        left = round(seconds / max(self.done, 1) * (self.total - self.done))
        hours, minutes = divmod(left // 60, 60)
        share = "worker" if self.workers == 1 else f"{self.workers} workers"
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.done / seconds:.3g} pictures/s, {self.masks / seconds:.3g} masks/s, "
            f"{share} {_PERCENT * self.at_work:.0f} % at work{failed}, "
            f"ends in {hours}:{minutes:02}:{left % 60:02}"
        )


class JobProgress:
    """The pictures of a job at work: in the bar's text, or in lines of their own.

    Args:
        total: pictures.
        workers: that share the work.
        show: False for silence.
    """

    def __init__(self, total: int, workers: int, show: bool) -> None:
        self.pace = Pace(total, workers)
        self.show = show
        self._bar = ProgressBar(total, show=show)
        self._current = self._head = ""
        self._last_line = time.monotonic()

    def begin(self, name: Path) -> None:
        """A picture is being worked on in this process, the only one."""
        self._current = name.name
        self._head = f"[{self.pace.done + 1}/{self.pace.total}] {name}"
        self._bar.describe(self._current)

    def points(self, done: int, total: int) -> None:
        """So many points of its grid are done."""
        points = f"{done:,} of {total:,} points"
        pace = f"  {self.pace}" if self.pace.done else ""
        self._bar.describe(f"{self._current}  {points}{pace}")
        self._line(f"{self._head}: {points}")

    def end(self, name: Path, outcome: str, failed: bool) -> None:
        """A picture is done, well or not; ``pace`` knows of it."""
        self._bar.advance()
        if not self._current:
            self._bar.describe(str(self.pace))
        done = f"[{self.pace.done}/{self.pace.total}]"
        if self.show and (failed or not self._bar.visible):
            self._bar.print_line(f"{done} {name}: {outcome}")
        self._line(f"{done} {self.pace}")

    def _line(self, text: str) -> None:
        """A line now and then, where there is no bar."""
        now = time.monotonic()
        if self.show and not self._bar.visible and now - self._last_line >= SECONDS_A_LINE:
            self._bar.print_line(text)
            self._last_line = now

    def __enter__(self) -> "JobProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@dataclass
class FolderReport:
    """What became of each picture; paths are relative to the folder.

    Attributes:
        segmented: pictures segmented now, with the number of their masks.
        resumed: pictures whose outputs an earlier run with the same model and settings has left.
        failed: pictures without outputs, with the reason in one line.
        ignored: files that are no pictures of the run, with the reason in a word or two.
        unknown: what prompts were given for and is no picture of the run.
        exported: the files of further formats: of all pictures, or the output folder.
        identity: the model that has worked.
        workers: how many have shared the work.
        seconds: from the first picture to the last.
        at_work: the share of that time that the workers were at work, 0 to 1.
    """

    segmented: dict[Path, int] = field(default_factory=dict)
    resumed: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    ignored: dict[Path, str] = field(default_factory=dict)
    unknown: list[str | int] = field(default_factory=list)
    exported: list[str] = field(default_factory=list)
    identity: Identity = field(default=Identity("", "", "", ""))
    workers: int = 1
    seconds: float = 0.0
    at_work: float = 0.0

    @property
    def masks(self) -> int:
        """How many were made now."""
        return sum(self.segmented.values())

    def to_json(self) -> dict[str, Any]:
        """For a record: counts, pace, and each picture that failed."""
        return {
            "segmented": len(self.segmented),
            "masks": self.masks,
            "resumed": len(self.resumed),
            "ignored": len(self.ignored),
            "prompts_for_others": self.unknown,
            "failed": {str(name): reason for name, reason in self.failed.items()},
            "exported": self.exported,
            "computed_by": self.identity.computed_by,
            "workers": self.workers,
            "seconds": self.seconds,
            "pictures_per_second": len(self.segmented) / self.seconds if self.seconds else None,
            "masks_per_second": self.masks / self.seconds if self.seconds else None,
            "workers_at_work": self.at_work,
        }

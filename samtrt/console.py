"""What every console program does around its work: errors in one line, exit status, progress."""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from samtrt.errors import SamtrtError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

Item = TypeVar("Item")

SECONDS_A_LINE = 10.0  # where there is no bar
# What would break a line or steer the terminal, and bytes of a name that were no text.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def run_script(main: Callable[[], int | None]) -> int:
    """Runs a script's ``main`` and returns the exit status for ``sys.exit``.

    A ``SamtrtError`` or a full disk is printed as ``error: …`` on stderr, without a traceback,
    and the status is 1. Ctrl-C gives 130; a reader that goes away (``| head``) gives 141 without
    a word. Any other exception is a bug and keeps its traceback. Where stdout cannot encode a
    character, it gets the character's escape, as stderr always does.

    Args:
        main: returns the status, or None for success.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except SamtrtError as error:
        return _fail(f"error: {one_line(str(error))}", EXIT_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        return _fail(f"error: {error.strerror}; make room, or write elsewhere", EXIT_ERROR)


def print_json(value: Any) -> None:
    """Prints ``value`` on stdout as one line of JSON; NaN and infinity become null."""
    import json

    from samtrt.files import without_nan

    print(json.dumps(without_nan(value), ensure_ascii=False))


def one_line(text: str) -> str:
    r"""The text with control characters and undecodable bytes escaped (``\n``, ``\udce9``).

    A file's name may hold any of them.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _fail(message: str, status: int) -> int:
    sys.stdout.flush()
    print(message, file=sys.stderr)
    return status


def _discard_output() -> None:
    """Lets the interpreter's last flush succeed, which would print another error."""
    with suppress(OSError), Path(os.devnull).open("w") as nowhere:  # may have no descriptor
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class ProgressBar:
    """A bar on a terminal, and nothing elsewhere, where its user prints lines (``print_line``).

    Args:
        total: what ``done`` is at the end.
        stream: where to show it; stderr by default.
        show: False for no bar even on a terminal.
        keep: whether the bar stays on the screen when it is closed.
        count: whether it shows ``done/total``, or a percentage.

    Attributes:
        done: how far it is; it never goes back.
        visible: whether there is a bar.
    """

    def __init__(
        self,
        total: float,
        stream: TextIO | None = None,
        show: bool = True,
        keep: bool = True,
        count: bool = True,
    ) -> None:
        self.done = 0.0
        self._stream = stream or sys.stderr
        self.visible = show and is_terminal(self._stream)
        if self.visible:
            self._progress, self._task = _rich_bar(self._stream, total, keep, count)

    def describe(self, text: str) -> None:
        """Says what is being worked on."""
        if self.visible:
            self._progress.update(self._task, description=one_line(text))

    def advance_to(self, done: float) -> None:
        """Grows to ``done``."""
        self.done = max(self.done, done)
        if self.visible:
            self._progress.update(self._task, completed=self.done)

    def advance(self) -> None:
        """Grows by one."""
        self.advance_to(self.done + 1)

    def print_line(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self.visible:
            printed = {"markup": False, "highlight": False, "soft_wrap": True}
            self._progress.console.print(one_line(text), **printed)
        else:
            print(one_line(text), file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the drawing."""
        if self.visible:
            self._progress.stop()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn there."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def progress_steps(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with a text before each of ``total`` steps.

    A bar on a terminal; one line a step elsewhere, so that a log stays readable. Both on stderr.
    """
    begun = 0
    with ProgressBar(total) as bar:

        def begin(text: str) -> None:
            nonlocal begun
            bar.advance_to(begun)  # the steps before are done
            begun += 1
            bar.describe(text)
            if not bar.visible:
                bar.print_line(f"[{begun}/{total}] {text}")

        yield begin
        bar.advance_to(begun)


def track(items: Iterable[Item], text: str, total: int, delay: float = 0.0) -> Iterator[Item]:
    """Yields the items and shows on stderr how many of them are done.

    A bar on a terminal, gone at the end; a line every ten seconds elsewhere.

    Args:
        total: how many items there are.
        delay: seconds before a bar appears, for work that is mostly over by then.
    """
    start = last_line = time.monotonic()
    bar: ProgressBar | None = None
    try:
        for number, item in enumerate(items):
            now = time.monotonic()
            if bar is None and now - start >= delay:
                bar = ProgressBar(total, keep=False)
                bar.describe(text)
            if bar is not None:
                bar.advance_to(number)
                if not bar.visible and now - last_line >= SECONDS_A_LINE:
                    bar.print_line(f"{text}: {number}/{total}")
                    last_line = now
            yield item
    finally:
        if bar is not None:
            bar.close()


def _rich_bar(stream: TextIO, total: float, keep: bool, count: bool) -> tuple[Any, Any]:
    # Imported here: whoever shows no bar is spared it.
    from rich import progress
    from rich.console import Console

    drawn = progress.Progress(
        progress.MofNCompleteColumn() if count else progress.TaskProgressColumn(),
        progress.BarColumn(30),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}", markup=False),
        console=Console(file=stream, force_terminal=True),
        transient=not keep,
    )
    drawn.start()
    return drawn, drawn.add_task("", total=total)

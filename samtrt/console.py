"""What every console program does around its work: errors in one line, exit status, progress."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from samtrt.errors import SamtrtError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def run_script(main: Callable[[], int | None]) -> int:
    """Runs a script's ``main`` and returns the exit status for ``sys.exit``.

    A ``SamtrtError`` or a full disk is printed as ``error: …`` on stderr, without a traceback,
    and the status is 1. Ctrl-C gives 130; a reader that goes away (``| head``) gives 141 without
    a word. Any other exception is a bug and keeps its traceback.

    Args:
        main: returns the status, or None for success.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except SamtrtError as error:
        return _fail(f"error: {error}", EXIT_ERROR)
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


def _fail(message: str, status: int) -> int:
    sys.stdout.flush()
    print(message, file=sys.stderr)
    return status


def _discard_output() -> None:
    """Lets the interpreter's last flush succeed, which would print another error."""
    with suppress(OSError), Path(os.devnull).open("w") as nowhere:  # may have no descriptor
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def progress_steps(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with a text before each of ``total`` steps.

    A bar on a terminal; one line a step elsewhere, so that a log stays readable. Both on stderr.
    """
    if not sys.stderr.isatty():
        count = 0

        def print_step(text: str) -> None:
            nonlocal count
            count += 1
            print(f"[{count}/{total}] {text}", file=sys.stderr, flush=True)

        yield print_step
        return
    with tqdm(total=total, bar_format="{n_fmt}/{total_fmt} {bar:30} {elapsed}  {desc}") as bar:
        begun = False

        def show_step(text: str) -> None:
            nonlocal begun
            bar.update(int(begun))  # the step before is done
            begun = True
            bar.set_description_str(text)

        yield show_step
        bar.update(int(begun))

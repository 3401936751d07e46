"""What every script does around its own work: errors become one line and an exit status."""

import sys
from collections.abc import Callable

from samtrt.errors import SamtrtError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run_script(main: Callable[[], int | None]) -> int:
    """Runs a script's ``main`` and returns the exit status for ``sys.exit``.

    A ``SamtrtError`` is printed as ``error: …`` on stderr, without a traceback, and the status
    is 1. Ctrl-C gives 130. Any other exception is a bug and keeps its traceback.

    Args:
        main: returns the status, or None for success.
    """
    try:
        return main() or 0
    except SamtrtError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

"""``python -m samtrt``, and the entry point of the console command ``samtrt``."""

import sys


def main() -> None:
    """Runs the console command; Ctrl-C while it is being imported ends it in one line, too."""
    try:
        from samtrt.cli import commands
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    commands.main()


if __name__ == "__main__":
    main()

"""``python -m samtrt.server``: a door to ``samtrt serve``."""

import argparse
import sys

from samtrt.cli import serve
from samtrt.cli.options import Options, log_to_stderr
from samtrt.console import run_script


def main() -> None:
    """Parses the options and serves."""
    parser = argparse.ArgumentParser(prog="python -m samtrt.server", description=serve.__doc__)
    serve.add_options(Options(parser))
    arguments = parser.parse_args()
    log_to_stderr()
    serve.run(arguments)


if __name__ == "__main__":
    sys.exit(run_script(main))

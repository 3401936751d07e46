"""Serves the click page and the HTTP API for one model."""

import argparse
import logging
import sys

from samtrt.console import run_script
from samtrt.server.options import add_arguments, options_from


def main() -> None:
    """``python -m samtrt.server``."""
    parser = argparse.ArgumentParser(prog="python -m samtrt.server", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    from samtrt.server.launch import serve

    serve(options_from(arguments))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""A parameter folder in, a checked engine out; defaults lie in sam_models/ beside this script.

The options are those of `samtrt build`; what they do stands in
samtrt/cli/build.py.
"""

import sys
from pathlib import Path

from samtrt.cli import build
from samtrt.cli.options import parse_arguments
from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> None:
    build.run(parse_arguments(build, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

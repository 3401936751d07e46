"""Meta's checkpoint in, a parameter folder out; defaults lie in sam_models/ beside this script.

The options are those of `samtrt convert`; what they do stands in
samtrt/cli/convert.py.
"""

import sys
from pathlib import Path

from samtrt.cli import convert
from samtrt.cli.options import parse_arguments
from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> None:
    convert.run(parse_arguments(convert, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

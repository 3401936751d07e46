"""Meta's checkpoint in, a parameter folder out; defaults lie in sam_models/ beside this script.

The options are those of `samtrt convert`; what they do stands in
samtrt/cli/convert.py.
"""

import sys
from pathlib import Path

from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> int | None:
    from samtrt.cli import convert  # here, so that Ctrl-C meanwhile ends in one line
    from samtrt.cli.options import parse_arguments

    return convert.run(parse_arguments(convert, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

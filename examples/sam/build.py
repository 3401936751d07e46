"""A parameter folder in, a checked engine out; defaults lie in sam_models/ beside this script.

The options are those of `samtrt build`; what they do stands in
samtrt/cli/build.py.
"""

import sys
from pathlib import Path

from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> int | None:
    from samtrt.cli import build  # here, so that Ctrl-C meanwhile ends in one line
    from samtrt.cli.options import parse_arguments

    return build.run(parse_arguments(build, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""A picture and a prompt in, a mask out; without options the demo picture and model.

The options are those of `samtrt run`; what they do stands in
samtrt/cli/run.py.
"""

import sys
from pathlib import Path

from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> int | None:
    from samtrt.cli import run  # here, so that Ctrl-C meanwhile ends in one line
    from samtrt.cli.options import parse_arguments

    return run.run(parse_arguments(run, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""How exact each encoder is; without options the demo model and pictures.

The options are those of `samtrt compare`; what they do stands in
samtrt/cli/compare.py.
"""

import sys
from pathlib import Path

from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> int | None:
    from samtrt.cli import compare  # here, so that Ctrl-C meanwhile ends in one line
    from samtrt.cli.options import parse_arguments

    return compare.run(parse_arguments(compare, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

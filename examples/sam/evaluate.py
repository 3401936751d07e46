"""How good the masks are; without options the demo model.

The options are those of `samtrt evaluate`; what they do stands in
samtrt/cli/evaluate.py.
"""

import sys
from pathlib import Path

from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> int | None:
    from samtrt.cli import evaluate  # here, so that Ctrl-C meanwhile ends in one line
    from samtrt.cli.options import parse_arguments

    return evaluate.run(parse_arguments(evaluate, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

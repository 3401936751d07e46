"""A parameter folder in, one ONNX file out; defaults lie in sam_models/ beside this script.

The options are those of `samtrt export-decoder`; what they do stands in
samtrt/cli/export_decoder.py.
"""

import sys
from pathlib import Path

from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> int | None:
    from samtrt.cli import export_decoder  # here, so that Ctrl-C meanwhile ends in one line
    from samtrt.cli.options import parse_arguments

    return export_decoder.run(parse_arguments(export_decoder, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

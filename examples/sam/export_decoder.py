"""A parameter folder in, one ONNX file out; defaults lie in sam_models/ beside this script.

The options are those of `samtrt export-decoder`; what they do stands in
samtrt/cli/export_decoder.py.
"""

import sys
from pathlib import Path

from samtrt.cli import export_decoder
from samtrt.cli.options import parse_arguments
from samtrt.console import run_script

HERE = Path(__file__).resolve().parent


def main() -> None:
    export_decoder.run(parse_arguments(export_decoder, HERE))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Serves the click page and the HTTP API for one model."""

import argparse
import logging
import sys
from pathlib import Path

from samtrt.scripts import run_script
from samtrt.server.launch import DEFAULT_PARAMS, ServeOptions, serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the server, also of ``samtrt serve``."""
    parser.add_argument(
        "--params",
        type=Path,
        default=DEFAULT_PARAMS,
        help=f"parameter folder made by params_convert.py (default: {DEFAULT_PARAMS})",
    )
    parser.add_argument(
        "--engine-dir",
        type=Path,
        help="engine folder made by build.py (default: PARAMS/engine)",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        help="mask decoder made by export_decoder.py, for the page "
        "(default: PARAMS/mask_decoder.onnx)",
    )
    parser.add_argument("--backend", choices=("auto", "tensorrt", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help='another host name to answer to, "*" for any; may be given several times',
    )
    parser.add_argument("--sample", type=Path, help="picture that the page offers to try")
    parser.add_argument("--no-page", action="store_true", help="the API without the page")


def options_from(arguments: argparse.Namespace) -> ServeOptions:
    """The parsed options as ``serve`` takes them."""
    return ServeOptions(
        params=arguments.params,
        engine_dir=arguments.engine_dir or arguments.params / "engine",
        decoder=None
        if arguments.no_page
        else arguments.decoder or arguments.params / "mask_decoder.onnx",
        backend=arguments.backend,
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=tuple(arguments.allowed_host),
        sample=arguments.sample,
    )


def main() -> None:
    """``python -m samtrt.server``."""
    parser = argparse.ArgumentParser(prog="python -m samtrt.server", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    serve(options_from(arguments))


if __name__ == "__main__":
    sys.exit(run_script(main))

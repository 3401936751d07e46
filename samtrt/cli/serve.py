"""Serves the click page and the HTTP API for one model."""

import argparse
from pathlib import Path

from samtrt.cli.options import ENGINE, PARAMS, Options

DEFAULT_PARAMS = Path("examples/sam/sam_models/sam_demo")


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add(
        "--params",
        type=Path,
        default=DEFAULT_PARAMS,
        help=f"{PARAMS} (default: {DEFAULT_PARAMS})",
    )
    options.add("--engine", type=Path, help=f"{ENGINE} (default: PARAMS/engine)")
    options.add(
        "--decoder",
        type=Path,
        help="ONNX file of the mask decoder, for the page "
        "(default: PARAMS/mask_decoder.onnx, exported when it is not there)",
    )
    options.add_backend()
    options.add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    options.add("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    options.add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name to answer to, *.NAME for all below it, * for any; "
        "may be given several times",
    )
    options.add("--sample", type=Path, help="picture that the page offers to try")
    options.add("--no-page", action="store_true", help="the API without the page")


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    from samtrt.server.launch import ServeOptions, serve

    options = ServeOptions(
        params=arguments.params,
        engine=arguments.engine,
        decoder=arguments.decoder,
        backend=arguments.backend,
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=tuple(arguments.allowed_host),
        sample=arguments.sample,
        page=not arguments.no_page,
    )
    serve(options)

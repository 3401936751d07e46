"""Serves the click page and the HTTP API for one model, the demo model by default."""

import argparse
from pathlib import Path

from samtrt.cli.options import Options
from samtrt.cli.parts.model import add_model, chosen_model


def add_options(options: Options) -> None:
    """Adds the command's options."""
    add_model(options)
    options.add(
        "--decoder",
        type=Path,
        help="folder of the page's mask decoder, made when it is not there "
        "(default: page_decoder beside the parameters)",
    )
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
    options.add(
        "--root-path",
        default="",
        metavar="PATH",
        help="prefix of all paths behind a proxy, as /sam, whether the proxy takes it away or not",
    )
    options.add(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address or network of a proxy whose X-Forwarded-For is believed; may be given "
        "several times",
    )
    options.add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that clients must send as `Authorization: Bearer TOKEN` "
        "(default: the environment's SAMTRT_TOKEN; without it one is made and printed where "
        "--host is not the loopback)",
    )
    options.add("--no-metrics", action="store_true", help="no /metrics")
    options.add("--sample", type=Path, help="picture that the page offers to try")
    options.add("--no-page", action="store_true", help="the API without the page")


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    from samtrt.models.catalogue import DEMO, demo_picture
    from samtrt.server.launch import ServeOptions, require_installed, serve

    require_installed(not arguments.no_page)
    model = chosen_model(arguments, default=DEMO)
    options = ServeOptions(
        params=model.parameter_folder(),
        engine=model.engine,
        decoder=arguments.decoder,
        backend=arguments.backend,
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=tuple(arguments.allowed_host),
        root_path=arguments.root_path,
        trusted_proxies=tuple(arguments.trusted_proxy),
        token_file=arguments.token_file,
        metrics=not arguments.no_metrics,
        sample=arguments.sample or demo_picture(),
        page=not arguments.no_page,
    )
    serve(options)

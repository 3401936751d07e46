"""The server's options; nothing here imports torch, so that ``--help`` is there at once."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from samtrt.server.settings import Settings

DEFAULT_PARAMS = Path("examples/sam/sam_models/sam_demo")
DEFAULT_SAMPLE = Path("examples/sam/images/demo.jpg")


@dataclass(frozen=True)
class ServeOptions:
    """What to serve and where.

    Attributes:
        params: parameter folder.
        engine: engine folder of the image encoder; None for the one in ``params``.
        decoder: ONNX file of the mask decoder, for the page; None for the one in ``params``,
            which is exported when it is not there.
        backend: see ``load_encoder``.
        host, port: where to listen.
        allowed_hosts: host names answered beside the loopback's and ``host``.
        sample: picture that the page offers to try; None for the demo scene where it is there.
        page: whether there is a page, or the API alone.
        settings: limits; its ``allowed_hosts`` is replaced.
    """

    params: Path
    engine: Path | None = None
    decoder: Path | None = None
    backend: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    sample: Path | None = None
    page: bool = True
    settings: Settings = field(default_factory=Settings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m samtrt.server`` and of ``samtrt serve``."""
    parser.add_argument(
        "--params",
        type=Path,
        default=DEFAULT_PARAMS,
        help=f"parameter folder made by params_convert.py (default: {DEFAULT_PARAMS})",
    )
    parser.add_argument(
        "--engine", type=Path, help="engine folder made by build.py (default: PARAMS/engine)"
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        help="mask decoder made by export_decoder.py, for the page "
        "(default: PARAMS/mask_decoder.onnx, exported when it is not there)",
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
    """The parsed options as ``launch.serve`` takes them."""
    return ServeOptions(
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

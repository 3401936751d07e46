"""From the server's options to a server that listens."""

import logging
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

from samtrt.decoder import OnnxDecoder
from samtrt.engine import read_engine_info
from samtrt.errors import EngineError, InputError, SamtrtError
from samtrt.sam import load_sam
from samtrt.server.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_PARAMS = Path("examples/sam/sam_models/sam_demo")
DEFAULT_SAMPLE = Path("examples/sam/images/demo.jpg")

MAX_CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 15
SHUTDOWN_SECONDS = 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeOptions:
    """What to serve and where.

    Attributes:
        params: parameter folder, for the mask decoder that answers the API.
        engine_dir: engine folder of the image encoder.
        decoder: ONNX file of the mask decoder, for the page; None for the API alone.
        backend: see ``load_encoder``.
        host, port: where to listen.
        allowed_hosts: host names answered beside the loopback's and ``host``.
        sample: picture that the page offers to try; None for the demo scene where it is there.
        settings: limits; its ``allowed_hosts`` is replaced.
    """

    params: Path
    engine_dir: Path
    decoder: Path | None
    backend: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    sample: Path | None = None
    settings: Settings = field(default_factory=Settings)


def serve(options: ServeOptions) -> None:
    """Loads the model, then serves until it is interrupted.

    Raises:
        SamtrtError: a package, the page's assets, the model or the port is not to be had.
    """
    try:
        import uvicorn

        from samtrt.server.app import create_app
        from samtrt.server.assets import require_assets
    except ImportError as error:
        raise SamtrtError(
            f"{error.name} is not installed, and the server needs it; "
            "run `pip install -r requirements-server.txt`"
        ) from error

    if options.decoder is not None:
        require_assets()
        _check_decoder(options.decoder, options.engine_dir)
    sample = options.sample
    if sample is None and DEFAULT_SAMPLE.is_file():
        sample = DEFAULT_SAMPLE
    if sample is not None and not sample.is_file():
        raise InputError(f"no picture at {sample}; give the path of a picture file")
    listener = _listen(options.host, options.port)
    sam = load_sam(options.engine_dir, options.params, options.backend)
    settings = replace(options.settings, allowed_hosts=_allowed_hosts(options))
    app = create_app(sam, options.decoder, sample, settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    logger.info("samtrt is ready on http://%s:%d (Ctrl-C ends it)", name, port)
    uvicorn.Server(config).run(sockets=[listener])


def _check_decoder(decoder: Path, engine_dir: Path) -> None:
    """The page's masks and the encoder must come from one parameter set."""
    found = OnnxDecoder(decoder)
    expected = read_engine_info(engine_dir).parameters_sha256
    if found.parameters_sha256 != expected or found.num_masks != 4:
        raise EngineError(
            f"{decoder} is not the four-mask decoder of the engine in {engine_dir}; "
            "export it from the same parameters with export_decoder.py"
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SamtrtError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host or --port"
        ) from error


def _allowed_hosts(options: ServeOptions) -> tuple[str, ...]:
    wildcard = options.host in ("0.0.0.0", "::") and not options.allowed_hosts
    return ("*",) if wildcard else (*LOOPBACK, options.host, *options.allowed_hosts)

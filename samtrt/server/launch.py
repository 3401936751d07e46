"""From the server's options to a server that listens."""

import logging
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

from samtrt.checkpoints.parameters import load_parameters
from samtrt.decoders.export import export_decoder
from samtrt.decoders.onnx import OnnxDecoder
from samtrt.encoders.engine import read_engine_info
from samtrt.errors import EngineError, InputError, SamtrtError
from samtrt.sam import load_sam
from samtrt.server.settings import Settings

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 15
SHUTDOWN_SECONDS = 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")
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

    engine = options.engine or options.params / "engine"
    settings = replace(options.settings, allowed_hosts=_allowed_hosts(options))
    sample = _find_sample(options.sample)
    decoder = None
    if options.page:
        require_assets()
        decoder = _find_decoder(options, engine)
    with _listen(options.host, options.port) as listener:
        sam = load_sam(engine, options.params, options.backend)
        app = create_app(sam, decoder, sample, settings, read_engine_info(engine).note)
        if sam.device.type == "cuda":
            logger.info("warming up")
            app.state.studio.warm_up()
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


def _find_sample(sample: Path | None) -> Path | None:
    if sample is None:
        return DEFAULT_SAMPLE if DEFAULT_SAMPLE.is_file() else None
    if not sample.is_file():
        raise InputError(f"no picture at {sample}; give the path of a picture file")
    return sample


def _find_decoder(options: ServeOptions, engine: Path) -> Path:
    """The page's mask decoder, of the encoder's own parameter set."""
    path = options.decoder or options.params / "mask_decoder.onnx"
    if options.decoder is None and not path.exists():
        parameters = load_parameters(options.params)
        logger.info("exporting the mask decoder to %s", path)
        export_decoder(parameters, path)
    found = OnnxDecoder(path)
    if found.parameters_sha256 != read_engine_info(engine).parameters_sha256:
        raise EngineError(
            f"{path} and the engine in {engine} are of different parameters; "
            "export and build both from the same ones"
        )
    if found.num_masks != 4:
        raise EngineError(
            f"{path} was exported with --return-single-mask; the page needs it without"
        )
    return path


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SamtrtError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host or --port"
        ) from error


def _allowed_hosts(options: ServeOptions) -> tuple[str, ...]:
    for host in options.allowed_hosts:
        if "*" in host.removeprefix("*." if host != "*" else "*"):
            raise InputError(
                f"--allowed-host is {host}; expected a name, *.NAME for all below it, or * for any"
            )
    wildcard = options.host in ("0.0.0.0", "::") and not options.allowed_hosts
    return ("*",) if wildcard else (*LOOPBACK, options.host, *options.allowed_hosts)

"""From the server's options to a server that listens."""

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samtrt.checkpoints.parameters import load_parameters
from samtrt.console import EXIT_INTERRUPTED
from samtrt.decoders.browser.contract import FORMAT
from samtrt.decoders.browser.export import export_browser_decoder
from samtrt.decoders.browser.runtime import BrowserDecoder
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.encoders.engine import read_engine_info
from samtrt.errors import EngineError, InputError, SamtrtError
from samtrt.hints import install
from samtrt.sam import Sam, load_sam
from samtrt.server.options import ServeOptions, to_text
from samtrt.server.settings import TOKEN_VARIABLE, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

BACKLOG = 256
MIN_TOKEN_LENGTH = 16
PAGE_DECODER = "page_decoder"  # in the parameter folder
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(options: ServeOptions) -> None:
    """Loads the model, then serves until it is interrupted.

    Raises:
        SamtrtError: a package, the page's assets, the model or the port is not to be had.
    """
    require_installed(options.page)
    from samtrt.server.assets import assets_compressed
    from samtrt.server.guard.serving import Server

    if options.page and not assets_compressed():
        logger.warning(
            "the page's assets are not compressed, and a first visit takes longer; "
            "run `python -m samtrt.server.assets`"
        )
    _find_sample(options.sample)
    decoder = find_decoder(options)  # before several processes look for it
    with _listen(options.host, options.port) as listener:
        address, port = listener.getsockname()[:2]
        settings = network_settings(options, ip_address(address))
        names = (*options.allowed_hosts, address)
        name = names[0] if ip_address(address).is_unspecified and names[0] != "*" else address
        url = f"http://{f'[{name}]' if ':' in name else name}:{port}"
        if settings.token and not given_token(options):
            url += f"/#token={settings.token}"

        def say_ready() -> None:
            logger.info("samtrt is ready on %s (Ctrl-C ends it)", url)
            if not ip_address(address).is_loopback:
                logger.warning(
                    "open to the network: whoever has the token may send pictures, and nothing is "
                    "encrypted; see docs/server.md for a proxy with TLS"
                )

        if options.workers is not None or options.gpus is not None:
            _serve_replicas(options, settings, listener, say_ready)
            return
        app = load_application(options, settings, decoder)
        say_ready()
        try:
            Server(app).run(sockets=[listener])
        except KeyboardInterrupt:
            if app.state.studio.is_busy:
                _leave()  # a picture in the encoder would hold the interpreter until it is done
            raise


def load_application(options: ServeOptions, settings: Settings, decoder: Path | None) -> "FastAPI":
    """The application with its model in this process, warm.

    Args:
        options: the model and what belongs to it.
        settings: as of ``network_settings``.
        decoder: as of ``find_decoder``.

    Raises:
        SamtrtError: the model or the store is not to be had.
    """
    from samtrt.server.app import create_app
    from samtrt.server.model.store import Store
    from samtrt.server.tracing import exporting

    engine = _engine_of(options)
    tracing = exporting() if options.trace else None
    store = Store(options.store, settings.store_seconds) if options.store is not None else None
    sam = load_sam(engine, options.params, options.backend)
    info = read_engine_info(engine)
    logger.info("warming up")
    largest = encode_batch(sam, info.max_batch_size, options.encode_batch)
    settings = replace(settings, encode_batch=largest)
    sample = _find_sample(options.sample)
    app = create_app(sam, decoder, sample, settings, info.note, tracing, store)
    app.state.studio.warm_up()
    return app


def _serve_replicas(
    options: ServeOptions,
    settings: Settings,
    listener: socket.socket,
    say_ready: Callable[[], None],
) -> None:
    """Serves with a process for each replica behind the port."""
    import torch

    from samtrt.server.guard.serving import Server
    from samtrt.server.replicas.front import create_front
    from samtrt.server.replicas.processes import (
        ProcessReplicas,
        cpu_environments,
        gpu_environments,
    )
    from samtrt.server.tracing import exporting

    if options.gpus is not None:
        environments = gpu_environments(options.gpus, torch.cuda.device_count())
    else:
        environments = cpu_environments(options.workers or 1)
    many = len(environments)
    # Limits of all clients are of each replica.
    front = replace(
        settings,
        max_requests=many * settings.max_requests,
        max_connections=many * settings.max_connections,
    )
    command = [sys.executable, "-m", "samtrt.server.replicas.worker", to_text(options)]
    replicas = ProcessReplicas(
        command, environments, settings.drain_seconds, options.store is not None
    )
    app = create_front(replicas, front, exporting() if options.trace else None)

    async def start() -> None:
        logger.info("starting %d replicas", many)
        await replicas.start()
        say_ready()

    Server(app, start, replicas.stop).run(sockets=[listener])


def encode_batch(sam: Sam, largest: int, wanted: int | None) -> int:
    """How many pictures are encoded together at most.

    Args:
        sam: the model, which is tried where nothing is wanted.
        largest: the engine's largest batch.
        wanted: what was asked for; None for what is measured.

    Raises:
        InputError: more is wanted than the engine takes.
    """
    from samtrt.server.model.batching import LARGEST, best_batch

    if wanted is not None:
        if wanted > largest:
            raise InputError(
                f"--encode-batch is {wanted}, and the engine takes {largest} at once; build it "
                f"with --max-batch-size {wanted}"
            )
        return wanted
    if largest == 1:
        return 1

    def encode(images: Sequence[np.ndarray]) -> list[EmbeddedPicture]:
        return [picture.to("cpu") for picture in sam.embed_pictures(images)]

    return best_batch(encode, sam.img_size, min(largest, LARGEST))


def require_installed(page: bool) -> None:
    """Raises unless the server can start here; before anything takes its time.

    Args:
        page: whether there is a page, which has assets of its own.

    Raises:
        SamtrtError: a package or the page's assets are missing.
    """
    try:
        import samtrt.server.app
        import samtrt.server.guard.serving  # noqa: F401
        from samtrt.server.assets import require_assets
    except ImportError as error:
        raise SamtrtError(
            f"{error.name} is not installed, and the server needs it; run `{install('server')}`"
        ) from error
    if page:
        require_assets()


def _leave() -> None:
    print("interrupted", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def network_settings(options: ServeOptions, address: IPv4Address | IPv6Address) -> Settings:
    """The options' settings, with what may be reached from where the server listens."""
    if address.is_unspecified and not options.allowed_hosts:
        raise InputError(
            f"--host {options.host} is every address of this machine; name the hosts that clients "
            'use with --allowed-host NAME ("*" for any)'
        )
    for host in options.allowed_hosts:
        if "*" in host.removeprefix("*." if host != "*" else "*"):
            raise InputError(
                f"--allowed-host is {host}; expected a name, *.NAME for all below it, or * for any"
            )
    for proxy in options.trusted_proxies:
        try:
            ip_network(proxy)
        except ValueError as error:
            raise InputError(
                f"--trusted-proxy {proxy} is no address and no network ({error}); "
                "give one as 10.0.0.7 or 10.0.0.0/24"
            ) from error
    for origin in options.cors_origins:
        # As browsers send it: no path, and no port where it is the scheme's own.
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?", origin):
            raise InputError(
                f"--cors-origin is {origin}; expected an origin as browsers send it, as "
                "https://tool.example or http://localhost:3000"
            )
    root_path = options.root_path.rstrip("/")
    if not re.fullmatch(r"(/[\w.~-]*[\w~-])*", root_path, re.ASCII):
        raise InputError(
            f"--root-path is {options.root_path}; expected the path that the proxy serves this "
            "server at, as /sam or /tools/sam"
        )
    token = given_token(options)
    if token is None and not address.is_loopback:
        token = secrets.token_urlsafe(32)
    return replace(
        options.settings,
        allowed_hosts=(*LOOPBACK, options.host, *options.allowed_hosts),
        root_path=root_path,
        trusted_proxies=options.trusted_proxies,
        token=token,
        metrics=options.metrics,
        access_log=options.access_log,
        cors_origins=options.cors_origins,
    )


def given_token(options: ServeOptions) -> str | None:
    """The token of the file, or of the environment.

    Raises:
        InputError: it cannot be read, is short, or has characters that no header may have.
    """
    if options.token_file is not None:
        where = str(options.token_file)
        try:
            token = options.token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InputError(f"cannot read {where}: {reason}; give a file with a token") from error
    elif TOKEN_VARIABLE in os.environ:
        where, token = f"the environment's {TOKEN_VARIABLE}", os.environ[TOKEN_VARIABLE].strip()
    else:
        return None
    if len(token) < MIN_TOKEN_LENGTH or not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):
        raise InputError(
            f"the token in {where} must have {MIN_TOKEN_LENGTH} or more letters, digits or "
            "-._~+/=; `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
        )
    return token


def _find_sample(sample: Path | None) -> Path | None:
    if sample is None:
        return None
    if not sample.is_file():
        raise InputError(f"no picture at {sample}; give the path of a picture file")
    return sample


def _engine_of(options: ServeOptions) -> Path:
    return options.engine or options.params / "engine"


def find_decoder(options: ServeOptions) -> Path | None:
    """Folder of the page's mask decoder, of the encoder's own parameter set; None for no page.

    The one in the parameter folder is made where it is missing, damaged or of other parameters;
    one that was named is made where it is missing, and refused where it does not fit.

    Raises:
        SamtrtError: so it is, or it cannot be made.
    """
    if not options.page:
        return None
    engine = _engine_of(options)
    wanted = read_engine_info(engine).parameters_sha256
    folder = options.decoder or options.params / PAGE_DECODER
    if options.decoder is not None and folder.exists() and not folder.is_dir():
        raise InputError(
            f"--decoder {folder} is a file; expected a folder for the page's decoder, which is "
            "made of the parameters"
        )
    if folder.exists():
        try:
            found = BrowserDecoder(folder)
        except EngineError:
            if options.decoder is not None:
                raise
        else:
            if (found.parameters_sha256, found.format) == (wanted, FORMAT):
                return folder
            if options.decoder is not None:
                raise EngineError(
                    f"the mask decoder in {folder} and the engine in {engine} are of different "
                    f"parameters or versions; remove {folder}, and it is made anew"
                )
    parameters = load_parameters(options.params)
    if parameters.sha256 != wanted:
        raise EngineError(
            f"the parameters in {options.params} and the engine in {engine} are different "
            "parameters; build the engine from these"
        )
    logger.info("exporting the page's mask decoder to %s", folder)
    export_browser_decoder(parameters, folder)
    BrowserDecoder(folder)
    return folder


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise SamtrtError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host or --port"
        ) from error

"""What to serve and where, as a console, a process or a cluster has it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtrt.server.settings import Settings


@dataclass(frozen=True)
class ServeOptions:
    """What to serve and where.

    Attributes:
        params: parameter folder.
        engine: engine folder of the image encoder; None for the one in ``params``.
        decoder: folder of the page's mask decoder, which is made when it is not there; None for
            the one in ``params``.
        backend: see ``load_encoder``.
        host, port: where to listen.
        allowed_hosts: host names answered beside the loopback's and ``host``; needed where
            ``host`` is every address.
        root_path: prefix of all paths behind a proxy, as ``/sam``; "" for none.
        trusted_proxies: addresses or networks of proxies whose X-Forwarded-For is believed.
        token_file: file with the token that clients must send; None for the environment's
            SAMTRT_TOKEN. Without either one is made where ``host`` is not the loopback.
        encode_batch: pictures that are encoded together at most, of those that wait; None measures
            what is best.
        store: address of a Valkey or Redis that has the embeddings of several servers; None for
            none.
        workers: processes on the CPUs, each with the model; None for this one.
        gpus: ``all`` or numbers of GPUs, a process for each; None for this process.
        trace: whether OpenTelemetry's spans are sent.
        metrics: whether there is ``/metrics``.
        access_log: whether each request is logged.
        cors_origins: origins whose pages may call the API.
        sample: picture that the page offers to try; None for none.
        page: whether there is a page, or the API alone.
        settings: limits; what is no limit there is replaced by what is said here.
    """

    params: Path
    engine: Path | None = None
    decoder: Path | None = None
    backend: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    root_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    token_file: Path | None = None
    encode_batch: int | None = None
    store: str | None = None
    workers: int | None = None
    gpus: str | None = None
    trace: bool = False
    metrics: bool = True
    access_log: bool = False
    cors_origins: tuple[str, ...] = ()
    sample: Path | None = None
    page: bool = True
    settings: Settings = field(default_factory=Settings)


_REPLICAS_PATHS = ("params", "engine", "decoder", "sample")
_PATHS = (*_REPLICAS_PATHS, "token_file")


def options_of(values: Mapping[str, Any], settings: Mapping[str, Any]) -> ServeOptions:
    """Options and settings as JSON or YAML has them: paths are text, and tuples are lists."""
    typed: dict[str, Any] = {
        name: Path(value) if name in _PATHS and value is not None else _with_tuples(value)
        for name, value in values.items()
    }
    limits: dict[str, Any] = {name: _with_tuples(value) for name, value in settings.items()}
    return ServeOptions(**typed, settings=Settings(**limits))


def _with_tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def to_text(options: ServeOptions) -> str:
    """The options for a replica's command line; what is the front's own is left out."""
    settings = options.settings
    inner = dataclasses.replace(
        settings,
        max_requests_per_client=settings.max_requests,
        max_connections_per_client=settings.max_connections,
        everything_queue_per_client=settings.everything_queue,
        token=None,
        root_path="",
        trusted_proxies=(),
        cors_origins=(),
        access_log=False,
        allowed_hosts=("*",),
    )
    kept = ("backend", "store", "encode_batch", "trace", "page")
    values: dict[str, Any] = {name: getattr(options, name) for name in kept}
    for name in _REPLICAS_PATHS:
        path = getattr(options, name)
        values[name] = None if path is None else str(path.absolute())
    return json.dumps({**values, "settings": dataclasses.asdict(inner)})


def from_text(text: str) -> ServeOptions:
    """What ``to_text`` wrote."""
    values = json.loads(text)
    return options_of(values, values.pop("settings"))

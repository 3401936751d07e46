"""Serves the click page and the HTTP API for one model, the demo model by default."""

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samtrt.cli.options import Options
from samtrt.cli.parts.model import add_model, chosen_model
from samtrt.server.settings import Settings, limits

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


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
    options.add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin, as https://tool.example, whose pages may call the API from a browser; may be "
        "given several times",
    )
    options.add(
        "--encode-batch",
        type=_batch,
        metavar="N",
        help="pictures that are encoded together at most, of those that wait; auto measures at the "
        "start what is best (default: auto)",
    )
    replicas = Options(options.parser.add_mutually_exclusive_group())
    replicas.add(
        "--gpus",
        type=_gpus,
        metavar="all|0,1,…",
        help="a process with the model for each of these GPUs, behind the one port",
    )
    replicas.add(
        "--workers",
        type=_count,
        metavar="N",
        help="N processes with the model on the CPUs, behind the one port",
    )
    options.add(
        "--store",
        metavar="URL",
        help="Valkey or Redis, as valkey://HOST:PORT, in which several servers or processes find "
        "each other's embeddings",
    )
    options.add(
        "--trace",
        action="store_true",
        help="send OpenTelemetry's spans of requests and work, where OTEL_EXPORTER_OTLP_ENDPOINT "
        "says",
    )
    options.add("--access-log", action="store_true", help="a line on stderr for each request")
    options.add("--no-metrics", action="store_true", help="no /metrics")
    options.add("--sample", type=Path, help="picture that the page offers to try")
    options.add("--no-page", action="store_true", help="the API without the page")
    group = Options(options.parser.add_argument_group("limits"))
    for limit in limits():
        group.add(
            _flag(limit.name),
            type=_number(limit),
            metavar="BYTES" if limit.name.endswith("_bytes") else "N",
            help=f"{limit.metadata['help']} (default: {_shown(limit)})".replace("%", "%%"),
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(limit: "dataclasses.Field[Any]") -> str:
    """A default as it can be typed."""
    value: Any = limit.default
    if limit.name.endswith("_bytes"):
        unit = next(unit for unit in reversed(_UNITS) if not value % _UNITS[unit])
        return f"{value // _UNITS[unit]}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(limit: "dataclasses.Field[Any]") -> Callable[[str], float]:
    """Reads a limit: above zero, bytes with a unit if wanted."""
    whole = isinstance(limit.default, int)

    def number(text: str) -> float:
        found = re.fullmatch(r"([\d_]*\.?\d+)(|KiB|MiB|GiB)", text)
        if found is None or (found[2] and not limit.name.endswith("_bytes")):
            raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
        value = float(found[1]) * _UNITS[found[2]]
        if not (0 < value < math.inf) or (whole and value != int(value)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no {'whole ' if whole else ''}number above zero"
            )
        return int(value) if whole else value

    return number


def _batch(text: str) -> int | None:
    """A number of pictures; None for ``auto``."""
    return None if text == "auto" else _count(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def _gpus(text: str) -> str:
    if not re.fullmatch(r"all|\d+(,\d+)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor numbers as 0,1")
    return text


def _settings(arguments: argparse.Namespace) -> Settings:
    """The limits that were given, and the defaults of the others."""
    given = {limit.name: getattr(arguments, limit.name) for limit in limits()}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    from samtrt.models.catalogue import DEMO, demo_picture
    from samtrt.server.launch import require_installed, serve
    from samtrt.server.options import ServeOptions

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
        encode_batch=arguments.encode_batch,
        store=arguments.store,
        workers=arguments.workers,
        gpus=arguments.gpus,
        trace=arguments.trace,
        access_log=arguments.access_log,
        cors_origins=tuple(arguments.cors_origin),
        sample=arguments.sample or demo_picture(),
        page=not arguments.no_page,
        settings=_settings(arguments),
    )
    serve(options)

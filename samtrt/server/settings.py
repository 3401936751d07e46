"""The server's limits: what one request, one client and everybody together may ask for."""

from dataclasses import Field, dataclass, field, fields
from typing import Any

MIB = 1 << 20

# Of the environment; the processes that decode strangers' pictures do not get it.
TOKEN_VARIABLE = "SAMTRT_TOKEN"

PICTURE_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}


def _limit(default: Any, text: str) -> Any:
    """A field that `samtrt serve` has a flag for, with what both say of it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Limits and timeouts. The defaults suit one GPU or a workstation's CPU.

    Each limit says itself what it is (``metadata["help"]``), and is a flag of `samtrt serve`.

    Attributes:
        encode_batch: pictures that are encoded together at most, of those that wait.
        root_path: prefix of all paths behind a proxy, as ``/sam``; "" for none.
        trusted_proxies: addresses and networks whose X-Forwarded-For is believed; nobody's else.
        token: what clients must send as ``Authorization: Bearer``; None for nothing.
        metrics: whether there is ``/metrics``.
        access_log: whether each request is a line of the logger ``samtrt.access``.
        cors_origins: origins, as ``https://tool.example``, whose pages may call the API.
        allowed_hosts: Host headers answered; "*" for any. Names other than these are refused,
            so that no foreign page can reach a local server by rebinding its own name.
    """

    max_upload_bytes: int = _limit(20 * MIB, "size of a picture's file")
    max_json_bytes: int = _limit(4 * MIB, "size of any other request body")
    max_pixels: int = _limit(
        40_000_000, "width × height of a picture, checked before it is decoded"
    )
    max_side: int = _limit(16_384, "longer side of a picture, in pixels")
    max_prompts: int = _limit(64, "prompts of one request")
    max_polygon_runs: int = _limit(
        30_000, "run lengths of a mask that is made a polygon; more only as RLE or PNG"
    )
    cache_bytes: int = _limit(512 * MIB, "embeddings in memory; the least recently used leave")
    store_seconds: int = _limit(
        86_400, "seconds that --store keeps an embedding which nobody asks for"
    )
    # At most these, and those of one batch of the encoder, are in memory decoded.
    read_workers: int = _limit(2, "pictures that are decoded at once, each in its own process")
    read_seconds: float = _limit(20.0, "time to decode a picture; past it its process is killed")
    # The most that a picture of max_pixels needs is 16 bytes a pixel (WebP).
    read_bytes: int = _limit(1024 * MIB, "memory to decode a picture (on Linux)")
    encode_queue: int = _limit(16, "pictures that are decoded, encoded or wait for it")
    decode_queue: int = _limit(32, "mask requests that wait or run")
    decode_workers: int = _limit(2, "mask requests that run at once")
    everything_queue: int = _limit(4, '"everything" requests that wait or run; one runs at a time')
    everything_queue_per_client: int = _limit(1, "the same, one client; more get 429")
    everything_share: float = _limit(
        60.0, 'seconds of one "everything" before it gives way to others that wait'
    )
    everything_masks: int = _limit(
        6_000, 'masks of one "everything" that pass its filters, duplicates included'
    )
    everything_bytes: int = _limit(
        128 * MIB, "their run lengths, which the server holds five times over at most"
    )
    max_requests: int = _limit(64, "requests in work, all clients; more get 503")
    max_requests_per_client: int = _limit(8, "requests in work, one client; more get 429")
    max_connections: int = _limit(
        256, "open connections; past it the one that has waited longest is closed"
    )
    max_connections_per_client: int = _limit(
        32, "the same, one address that is no trusted proxy's; more are closed at once"
    )
    head_timeout: float = _limit(10.0, "seconds for a request's headers to arrive")
    body_timeout: float = _limit(30.0, "seconds for a request body to arrive")
    answer_timeout: float = _limit(60.0, "seconds for a client to take an answer")
    encode_timeout: float = _limit(
        120.0, "seconds from a picture's arrival to its embedding, waiting included"
    )
    decode_timeout: float = _limit(30.0, "seconds for masks, waiting included")
    everything_timeout: float = _limit(300.0, 'seconds for "everything", waiting included')
    # Ctrl-C does not wait for them.
    drain_seconds: float = _limit(20.0, "seconds that the requests at work have after SIGTERM")
    encode_batch: int = 1
    root_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    token: str | None = None
    metrics: bool = True
    access_log: bool = False
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")


def limits() -> "list[Field[Any]]":
    """The settings that are limits."""
    return [one for one in fields(Settings) if "help" in one.metadata]

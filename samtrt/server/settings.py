"""The server's limits: what one request, one client and everybody together may ask for."""

from dataclasses import dataclass

MIB = 1 << 20

# Of the environment; the processes that decode strangers' pictures do not get it.
TOKEN_VARIABLE = "SAMTRT_TOKEN"

PICTURE_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}


@dataclass(frozen=True)
class Settings:
    """Limits and timeouts. The defaults suit one GPU or a workstation's CPU.

    Attributes:
        max_upload_bytes: size of a picture's file.
        max_json_bytes: size of any other request body.
        max_pixels: width × height of a picture, checked before it is decoded.
        max_side: longer side of a picture, in pixels.
        cache_bytes: embeddings and their pictures, the least recently used leave first.
        read_workers: pictures that are decoded at once, each in a process of its own. No more
            decoded pictures than one beside these are in memory.
        read_seconds: time to decode one picture; past it the process is killed.
        read_bytes: memory that a process may take to decode one (on Linux). The most that a
            picture of ``max_pixels`` needs is 16 bytes a pixel (WebP).
        encode_queue: pictures that wait for the encoder or are decoded or encoded.
        decode_queue: mask requests that wait or run.
        decode_workers: mask requests that run at once.
        everything_queue: "everything" requests that wait or run; one runs at a time.
        everything_queue_per_client: the same for one address; more get 429.
        everything_share: seconds that one "everything" has before it gives way to others that wait.
        everything_masks: masks of one "everything" that pass its filters, duplicates included.
        everything_bytes: their run lengths, which the server holds five times over at most.
        max_requests: requests in work at once, all clients together; more get 503.
        max_requests_per_client: the same for one address; more get 429.
        max_connections: open connections; past it the one that has waited longest is closed.
        max_connections_per_client: the same for one address that is no trusted proxy's; more are
            closed at once.
        head_timeout: seconds for a request's headers to arrive.
        body_timeout: seconds for a request body to arrive.
        answer_timeout: seconds for a client to take an answer.
        encode_timeout: seconds from a picture's arrival to its embedding, waiting included.
        decode_timeout: seconds for masks.
        everything_timeout: seconds for "everything".
        drain_seconds: how long the requests at work may take to finish once SIGTERM has come; then
            they are answered 503. Ctrl-C does not wait for them.
        root_path: prefix of all paths behind a proxy, as ``/sam``; "" for none.
        trusted_proxies: addresses and networks whose X-Forwarded-For is believed; nobody's else.
        token: what clients must send as ``Authorization: Bearer``; None for nothing.
        metrics: whether there is ``/metrics``.
        allowed_hosts: Host headers answered; "*" for any. Names other than these are refused,
            so that no foreign page can reach a local server by rebinding its own name.
    """

    max_upload_bytes: int = 20 * MIB
    max_json_bytes: int = 64 << 10
    max_pixels: int = 40_000_000
    max_side: int = 16_384
    cache_bytes: int = 512 * MIB
    read_workers: int = 2
    read_seconds: float = 20.0
    read_bytes: int = 1024 * MIB
    encode_queue: int = 16
    decode_queue: int = 32
    decode_workers: int = 2
    everything_queue: int = 4
    everything_queue_per_client: int = 1
    everything_share: float = 60.0
    everything_masks: int = 6_000
    everything_bytes: int = 128 * MIB
    max_requests: int = 64
    max_requests_per_client: int = 8
    max_connections: int = 256
    max_connections_per_client: int = 32
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    answer_timeout: float = 60.0
    encode_timeout: float = 120.0
    decode_timeout: float = 30.0
    everything_timeout: float = 300.0
    drain_seconds: float = 20.0
    root_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    token: str | None = None
    metrics: bool = True
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")

"""Clients that a server on a network meets and nobody wants: for ``benchmarks/server_load.py``.

Each has an address of its own (127.0.0.N), does one thing again and again with pauses between, and
counts what it was answered. None sends anything to another host than the loopback.
"""

import io
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
from PIL import Image

CLOSED = "closed"
TIMEOUT = "no answer"
PATIENCE = 400  # seconds, past every time limit of the server
HEAD = "POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"


class Hostile(threading.Thread):
    """One hostile client.

    Args:
        act: one round: (client) → what came of it.
        address: its own, 127.0.0.N.
        pause: most seconds between two rounds.
    """

    def __init__(
        self,
        act: "Callable[[Hostile], Iterator[str]]",
        url: str,
        address: str,
        stop: threading.Event,
        pause: float,
    ) -> None:
        super().__init__(name=act.__name__, daemon=True)
        self.act, self.url, self.address, self.stop, self.pause = act, url, address, stop, pause
        self.port = int(url.rsplit(":", 1)[1])
        self.random = random.Random(act.__name__)
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.wait(self.random.uniform(0, self.pause)):
                for outcome in self.act(self):
                    self.counts[outcome] += 1
                    if self.stop.is_set():
                        break
        except BaseException as error:
            self.error = error

    def post(self, path: str, timeout: float = PATIENCE, **body: object) -> httpx.Response | None:
        """The answer, or None where the client had no patience."""
        transport = httpx.HTTPTransport(local_address=self.address)
        with httpx.Client(transport=transport, base_url=self.url, timeout=timeout) as client:
            try:
                return client.post(path, **body)  # type: ignore[arg-type]
            except httpx.TimeoutException:
                return None

    def outcome(self, path: str, **body: object) -> str:
        """A request's status as text."""
        try:
            answer = self.post(path, **body)
        except httpx.TransportError:
            return CLOSED
        return TIMEOUT if answer is None else str(answer.status_code)

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A connection of the client's address."""
        source = (self.address, 0)
        with socket.create_connection(("127.0.0.1", self.port), 10, source) as connection:
            connection.settimeout(60)
            yield connection

    def talk(self, *pieces: bytes, pause: float = 0.0) -> str:
        """Sends the pieces, pausing between, and reads the status."""
        try:
            with self.connected() as connection:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
                start = connection.recv(64)
        except TimeoutError:
            return TIMEOUT
        except OSError:
            return CLOSED
        return start[9:12].decode() if start.startswith(b"HTTP/1.1") else CLOSED


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """[H, W, 3] pixels as a picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(seed: int, height: int = 150, width: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _embed(client: Hostile, content: bytes, kind: str) -> str:
    return client.outcome("/embed", content=content, headers={"Content-Type": f"image/{kind}"})


def endless_scans(client: Hostile) -> Iterator[str]:
    """A progressive JPEG of megabytes that refines its picture thousands of times."""
    content = encoded(_noise(1, 60, 80), "JPEG", progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    scan = content[last:end]
    yield _embed(client, content[:end] + scan * (4_700_000 // len(scan)) + content[end:], "jpeg")


def most_scans(client: Hostile) -> Iterator[str]:
    """A progressive JPEG of 16 megapixels with as many scans as are allowed."""
    content = encoded(np.full((4000, 4000, 3), 99, np.uint8), "JPEG", progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    yield _embed(client, content[:end] + content[last:end] * 80 + content[end:], "jpeg")


def empty_segments(client: Hostile) -> Iterator[str]:
    """A JPEG of millions of empty comments."""
    content = encoded(_noise(2), "JPEG")
    yield _embed(client, content[:2] + b"\xff\xfe\x00\x02" * 4_000_000 + content[2:], "jpeg")


def bombs(client: Hostile) -> Iterator[str]:
    """PNGs of a few kilobytes and up to 900 megapixels, and the largest that is allowed."""
    for side in (30_000, 10_000, 6_300):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        rows = zlib.compress(bytes(1 + side) * 100, 1)
        if side == 6_300:
            rows = zlib.compress(bytes((1 + side) * side), 1)
        chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
        content = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        yield _embed(client, content, "png")


def mutations(client: Hostile) -> Iterator[str]:
    """Pictures cut short and with bytes changed."""
    for kind in ("PNG", "JPEG", "WEBP"):
        content = bytearray(encoded(_noise(client.random.randrange(50)), kind))
        for _ in range(client.random.randrange(1, 30)):
            content[client.random.randrange(len(content))] = client.random.randrange(256)
        end = client.random.randrange(1, len(content) + 1)
        yield _embed(client, bytes(content[:end]), kind.lower())


def garbage(client: Hostile) -> Iterator[str]:
    """What is no HTTP, or HTTP with a mistake."""
    noise = client.random.randbytes(200)
    for data in (
        noise,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /masks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /masks HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise,
    ):
        yield client.talk(data)


def wrong_requests(client: Hostile) -> Iterator[str]:
    """Bodies that are no requests, and those for what is not there."""
    name = "0" * 64
    for body in (
        b"{",
        b"[" * 60_000,
        b'{"id": "' + b"a" * 60_000 + b'"}',
        b'{"id": 1e999}',
        f'{{"id": "{name}", "box": [0, 0, NaN, 1]}}'.encode(),
        f'{{"id": "{name}", "points_per_side": 999999999999}}'.encode(),
        b"x" * 100_000,
        client.random.randbytes(100),
    ):
        for path in ("/masks", "/everything", "/embed", "/nowhere"):
            yield client.outcome(path, content=body, headers={"Content-Type": "application/json"})
            time.sleep(0.05)


def silence(client: Hostile) -> Iterator[str]:
    """More connections than one client may have, without a word, until they are closed."""
    with ExitStack() as stack:
        connections = []
        for _ in range(64):
            try:
                connections.append(stack.enter_context(client.connected()))
            except OSError:
                yield CLOSED
        for connection in connections:
            try:
                yield CLOSED if connection.recv(1) == b"" else "answered"
            except TimeoutError:
                yield TIMEOUT
            except OSError:
                yield CLOSED


def slow_headers(client: Hostile) -> Iterator[str]:
    """Headers that come a byte a second."""
    yield client.talk(b"GET /health HTTP/1.1\r\nX: ", *[b"x"] * 30, pause=1)


def slow_bodies(client: Hostile) -> Iterator[str]:
    """A body that comes a byte a second, of a request that says whom it is forwarded for."""
    forwarded = ".".join(str(client.random.randrange(1, 255)) for _ in range(4))
    head = HEAD + f"X-Forwarded-For: {forwarded}\r\nContent-Length: 1000\r\n\r\n"
    yield client.talk(head.encode(), *[b"x"] * 60, pause=1)


def slow_readers(client: Hostile) -> Iterator[str]:
    """Sixty answers of an embedding's size asked for at once, of which none is read."""
    answer = client.post(
        "/embed", content=encoded(_noise(3), "PNG"), headers={"Content-Type": "image/png"}
    )
    if answer is None or answer.status_code != 200:
        yield TIMEOUT if answer is None else str(answer.status_code)
        return
    request = f"GET /embed/{answer.json()['id']} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with client.connected() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request * 60)
        client.stop.wait(70)
    yield "left"


def greedy(client: Hostile) -> Iterator[str]:
    """Everything, with the filters off, of a large picture; every other time it leaves early."""
    large = encoded(np.full((3000, 4000, 3), 7, np.uint8), "PNG", compress_level=1)
    answer = client.post("/embed", content=large, headers={"Content-Type": "image/png"})
    if answer is None or answer.status_code != 200:
        yield TIMEOUT if answer is None else str(answer.status_code)
        return
    body = {
        "id": answer.json()["id"],
        "points_per_side": 64,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
        "box_nms_thresh": 1,
    }
    early = client.random.random() < 0.5
    found = client.post("/everything", timeout=2 if early else PATIENCE, json=body)
    if found is not None:
        yield str(found.status_code)
    else:
        yield "left" if early else TIMEOUT


def floods(client: Hostile) -> Iterator[str]:
    """Forty pictures at once."""
    outcomes: list[str] = []

    def one(seed: int) -> None:
        outcomes.append(_embed(client, encoded(_noise(seed), "PNG"), "png"))

    threads = [
        threading.Thread(target=one, args=(client.random.randrange(1 << 30),)) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from outcomes


# Each with the most seconds between two rounds.
KINDS: dict[Callable[[Hostile], Iterator[str]], float] = {
    endless_scans: 10,
    most_scans: 40,
    empty_segments: 10,
    bombs: 20,
    mutations: 2,
    garbage: 5,
    wrong_requests: 5,
    silence: 5,
    slow_headers: 5,
    slow_bodies: 5,
    slow_readers: 20,
    greedy: 20,
    floods: 20,
}

"""What the front and a replica say to each other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from samtrt.server.guard.middleware import replay

Headers = list[tuple[bytes, bytes]]

# Of one connection, or made anew by whoever sends; and what the front has checked already.
_NOT_FORWARDED = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"),
    *(b"transfer-encoding", b"content-length", b"authorization", b"origin", b"sec-fetch-site"),
}
_NOT_ANSWERED = {b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server"}


class ReplicaLostError(Exception):
    """The replica ended before it had answered."""


@dataclass(frozen=True)
class Forwarded:
    """A request as it goes to a replica.

    Attributes:
        method: as ``GET``.
        path: below the server's prefix, percent-decoded.
        query: what follows the question mark, as it was sent.
        headers: lower-case names.
        body: all of it.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes

    @classmethod
    def of(cls, scope: Scope, path: str, body: bytes) -> "Forwarded":
        """The request of a scope that the guard has let pass."""
        headers = [
            (bytes(name), bytes(value))
            for name, value in scope["headers"]
            if name not in _NOT_FORWARDED
        ]
        return cls(scope["method"], path, bytes(scope["query_string"]), headers, body)


@dataclass(frozen=True)
class Answer:
    """A replica's answer.

    Attributes:
        status: HTTP status.
        headers: lower-case names.
        body: its parts, as they come.
    """

    status: int
    headers: Headers
    body: AsyncIterator[bytes]

    @property
    def is_streamed(self) -> bool:
        """Whether its parts are for the client as they come."""
        kinds = [value for name, value in self.headers if name == b"content-type"]
        return any(kind.startswith(b"application/x-ndjson") for kind in kinds)


def answered_headers(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Those of an answer that are the client's."""
    return [(name.lower(), value) for name, value in headers if name.lower() not in _NOT_ANSWERED]


class Replicas(Protocol):
    """The models behind a front.

    Attributes:
        shared: whether all of them find the embeddings of each (a store).
    """

    shared: bool

    async def computed_by(self) -> str:
        """Of their common model: what ids of pictures are made of; empty while none is up."""

    def all(self) -> list[str]:
        """Names of those that live; none where they cannot be told apart."""

    def candidates(self, key: str | None) -> list[str]:
        """Names of those that live: where a picture of that id belongs, and in which order others
        come then. Without an id, in any order."""

    async def send(self, name: str, request: Forwarded) -> Answer:
        """The answer of one of them.

        Args:
            name: of ``candidates``.

        Raises:
            ReplicaLostError: it ended before it had answered.
        """


async def answer_of(app: ASGIApp, request: Forwarded) -> AsyncIterator[Message]:
    """What an application in this process sends for a request, message by message."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "query_string": request.query,
        "headers": [
            *request.headers,
            (b"content-length", str(len(request.body)).encode()),
        ],
        "client": None,
        "server": None,
    }
    messages: asyncio.Queue[Message | None] = asyncio.Queue(8)
    gone = asyncio.Event()

    async def left() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, replay(request.body, left), messages.put)
        finally:
            await messages.put(None)

    work = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await work
    finally:
        gone.set()
        work.cancel()

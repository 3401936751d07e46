"""A link of a known speed between a browser and a server on this machine, which counts bytes.

Unlike a browser's own network emulation it slows and counts what workers load as well.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 16 << 10
LATE = 0.1  # seconds that a busy machine may oversleep without the link being the slower for it


class SlowLink:
    """Forwards connections to a port of the loopback.

    Args:
        port: of the server.
        bytes_per_second: in each direction, all connections together; None for no limit.
        delay: seconds that bytes are under way, one way.

    Attributes:
        port: of this end.
        down, up: bytes that came from the server, and that went to it.
    """

    def __init__(self, port: int, bytes_per_second: float | None = None, delay: float = 0) -> None:
        self.server = port
        self.bytes_per_second = bytes_per_second
        self.delay = delay
        self.down = self.up = 0
        self._lock = threading.Lock()
        self._free = {"down": 0.0, "up": 0.0}  # when a direction has sent what it was given
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Counts from zero."""
        with self._lock:
            self.down = self.up = 0

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.server))
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                arguments = (source, sink, way)
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(CHUNK):
                time.sleep(self._wait(way, len(data)))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one end has closed
            source.close()
            sink.close()

    def _wait(self, way: str, size: int) -> float:
        """Seconds until the last of so many bytes has gone through."""
        with self._lock:
            setattr(self, way, getattr(self, way) + size)
            now = time.monotonic()
            # What waits behind other bytes is read late by the delay of those.
            idle = self._free[way] + self.delay + LATE <= now
            start = now if idle else self._free[way]
            self._free[way] = start + (size / self.bytes_per_second if self.bytes_per_second else 0)
            return max(0.0, self._free[way] + self.delay - now)


@contextmanager
def slow_link(port: int, megabits: float | None = None, delay: float = 0) -> Iterator[SlowLink]:
    """A link of so many megabits a second (None for no limit)."""
    link = SlowLink(port, None if megabits is None else megabits * 1e6 / 8, delay)
    try:
        yield link
    finally:
        link.close()

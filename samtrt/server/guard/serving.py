"""uvicorn, set up for strangers: connections with limits, one way to end."""

import asyncio
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from samtrt.server.guard.connections import Connections, protocol_of
from samtrt.server.guard.stopping import Stopping
from samtrt.server.settings import Settings

KEEP_ALIVE_SECONDS = 15
LAST_ANSWERS_SECONDS = 0.5


class Server(uvicorn.Server):
    """Serves ``create_app``'s application until SIGTERM or Ctrl-C.

    At SIGTERM new requests are answered 503, and those at work have ``drain_seconds`` to finish;
    what is left then, or at once at Ctrl-C, is answered 503 too.

    Args:
        app: what ``create_app`` made.
    """

    def __init__(self, app: FastAPI) -> None:
        settings: Settings = app.state.settings
        self._connections = Connections(settings)
        proxies = list(settings.trusted_proxies)
        config = uvicorn.Config(
            app,
            http=protocol_of(self._connections),
            ws="none",
            log_level="warning",
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        super().__init__(config)
        self._settings = settings
        self._stopping: Stopping = app.state.stopping
        self._at_once = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the server; Ctrl-C does not wait."""
        self._captured_signals.append(sig)
        self._at_once = self._at_once or sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what is at work, closes every connection, then ends as uvicorn does."""
        stopping = self._stopping
        stopping.refusing = True
        deadline = time.monotonic() + self._settings.drain_seconds
        while stopping.at_work and not self._at_once and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        stopping.give_up()
        await asyncio.sleep(0)
        deadline = time.monotonic() + LAST_ANSWERS_SECONDS
        while self._connections and time.monotonic() < deadline:
            self._connections.close_idle()
            await asyncio.sleep(0.05)
        self._connections.end_all()
        await super().shutdown(sockets)

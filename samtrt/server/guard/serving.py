"""uvicorn, set up for strangers: connections with limits, one way to end."""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from samtrt.server.guard.connections import Connections, protocol_of
from samtrt.server.guard.stopping import Stopping
from samtrt.server.settings import Settings

KEEP_ALIVE_SECONDS = 15
LAST_ANSWERS_SECONDS = 0.5

Call = Callable[[], Awaitable[None]]


class Server(uvicorn.Server):
    """Serves ``create_app``'s application until SIGTERM or Ctrl-C.

    At SIGTERM new requests are answered 503, and those at work have ``drain_seconds`` to finish;
    what is left then, or at once at Ctrl-C, is answered 503 too.

    Args:
        app: what ``create_app`` or ``create_front`` made.
        start: awaited before it listens; given up where the server is told to end meanwhile.
        stop: awaited at the end, once no request is at work.
    """

    def __init__(self, app: Starlette, start: Call | None = None, stop: Call | None = None) -> None:
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
        self._start, self._stop = start, stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, once what stands behind is up."""
        if self._start is not None:
            work = asyncio.ensure_future(self._start())
            try:
                while not work.done() and not self.should_exit:
                    await asyncio.wait({work}, timeout=0.1)
                if work.done():
                    work.result()
            except BaseException:
                await self._end()
                raise
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await self._end()
                return
        await super().startup(sockets)

    async def _end(self) -> None:
        if self._stop is not None:
            await self._stop()

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
        await self._end()
        await super().shutdown(sockets)

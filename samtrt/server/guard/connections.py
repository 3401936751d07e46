"""Connections that send nothing, too little or too many: uvicorn's protocol with an end to each.

uvicorn bounds how long a connection idles between two requests. Added here are a time for a
request's headers to arrive and for an answer to be taken, and numbers of connections: of one
address, and of all, where the one that has waited longest makes room for the newest.
"""

import asyncio
from ipaddress import ip_address, ip_network

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from samtrt.server.settings import Settings


class Connections:
    """The open connections of one server.

    Args:
        settings: ``max_connections``, ``max_connections_per_client``, ``trusted_proxies`` and the
            timeouts of a connection.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._proxies = [ip_network(proxy) for proxy in settings.trusted_proxies]
        self._open: dict[GuardedProtocol, str] = {}  # in order of age

    def admit(self, new: "GuardedProtocol", address: str) -> bool:
        """Counts the connection in; False where its address has too many, or all are at work."""
        settings = self.settings
        of_address = sum(address == other for other in self._open.values())
        if of_address >= settings.max_connections_per_client and not self._is_proxy(address):
            return False
        if len(self._open) >= settings.max_connections:
            idle = next((protocol for protocol in self._open if protocol.is_idle), None)
            if idle is None:
                return False
            idle.end()
        self._open[new] = address
        return True

    def __len__(self) -> int:
        return len(self._open)

    def close_idle(self) -> None:
        """Closes those without a request at work, once their last answers are sent."""
        for protocol in list(self._open):
            if protocol.is_idle:
                protocol.transport.close()

    def end_all(self) -> None:
        """Closes all of them at once."""
        for protocol in list(self._open):
            protocol.end()

    def _is_proxy(self, address: str) -> bool:
        if not address:  # of a socket in a folder: only this user reaches it
            return True
        return any(ip_address(address) in proxy for proxy in self._proxies)

    def forget(self, protocol: "GuardedProtocol") -> None:
        """The connection is closed."""
        self._open.pop(protocol, None)


class GuardedProtocol(H11Protocol):
    """One HTTP/1.1 connection with an end to its waiting."""

    all: Connections  # of the server, set by ``protocol_of``

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        address = self.client[0] if self.client else ""
        if self.all.admit(self, address):
            self._time_head()
        else:
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        self.all.forget(self)
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is at work: its headers are not there yet, or it is answered."""
        return self.cycle is None or self.cycle.response_complete

    def end(self) -> None:
        """Closes the connection at once, whatever is still to be sent."""
        self._cancel_timers()
        self.all.forget(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._cancel_head_timer()
        else:
            self._time_head()

    def send_400_response(self, msg: str) -> None:
        # In the midst of a request uvicorn's answer would collide with the application's.
        try:
            if self.is_idle:
                super().send_400_response(msg)
                return
        except h11.LocalProtocolError:
            pass  # nothing can be said on this connection any more
        self.end()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.is_idle:  # the next request had arrived with the last
            self._cancel_head_timer()
        elif self.conn.their_state is h11.SEND_BODY or self.transport.is_closing():
            self._time_head()  # answered before its body was there, or the answer is not yet taken

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._time_head()  # what was not taken of the last answer keeps it open

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self.all.settings.answer_timeout
        self._answer_timer = self.loop.call_later(seconds, self.end)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _time_head(self) -> None:
        # Not put off by a byte now and then: the headers have this long, all together.
        if self._head_timer is None:
            seconds = self.all.settings.head_timeout
            self._head_timer = self.loop.call_later(seconds, self.end)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_timers(self) -> None:
        self._cancel_head_timer()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None


def protocol_of(connections: Connections) -> type[asyncio.Protocol]:
    """The protocol class of one server, for ``uvicorn.Config(http=…)``."""
    return type("Protocol", (GuardedProtocol,), {"all": connections})

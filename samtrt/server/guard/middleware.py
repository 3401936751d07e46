"""What happens around every request: headers, hosts, limits on size, time and number."""

import asyncio
import hmac
import logging
import time
from collections import Counter
from http import HTTPStatus
from urllib.parse import urlsplit

from anyio import fail_after
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samtrt.server.api.uploads import type_of
from samtrt.server.guard.access_log import log_access
from samtrt.server.guard.hosts import AllowedHosts
from samtrt.server.guard.stopping import Stopping
from samtrt.server.metrics import Metrics
from samtrt.server.problems import RequestError
from samtrt.server.settings import Settings
from samtrt.server.tracing import Tracing

log = logging.getLogger("samtrt.server")

# Scripts, styles and what the page loads by itself come from here only; WebAssembly needs its own
# permission. connect-src is wide for pictures that a user opens by their address. Isolation (COOP
# and COEP) is what lets the decoder's WebAssembly use threads.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        "style-src 'self'; font-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self' https: http: data: blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

READING_METHODS = {"GET", "HEAD", "OPTIONS", "TRACE"}
METHODS = READING_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
# What is there without the token: the pages, which hold nothing of anybody's, and the probe.
OPEN_PATHS = {"/", "/ready", "/docs"}
OPEN_FOLDERS = ("/static/", "/docs/")
JSON_PATHS = {"/masks", "/everything"}
# Of the API's paths; without it they are the same.
VERSION = "/v1"


def cross_origin(app: Starlette, settings: Settings) -> None:
    """Lets the pages of ``cors_origins`` call an application that has its guard already.

    It stands before the guard: its refusals too are for those pages to read.
    """
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Accept", "Authorization", "Content-Type", "If-None-Match"],
            expose_headers=["ETag", "Retry-After"],
        )


class Guard:
    """The outermost layer: every check that needs no route, and the count of every answer."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        stopping: Stopping,
        tracing: Tracing,
    ) -> None:
        self.app = app
        self.settings = settings
        self.hosts = AllowedHosts(settings.allowed_hosts)
        self.metrics = metrics
        self.stopping = stopping
        self.tracing = tracing
        self.in_work = 0
        self.in_work_of: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _below_root(scope, self.settings.root_path)
        asked = scope["method"] if scope["method"] in METHODS else "other"
        with (
            self.metrics.in_progress.track_inprogress(),
            self.tracing.request(scope, asked) as told,
        ):
            route, status = await self._answer(scope, receive, send)
            told(route, status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> tuple[str, int]:
        """Answers the request whatever happens; its route and status."""
        asked = scope["method"]
        started = time.perf_counter()
        answered: list[int] = []
        sent = 0

        async def send_guarded(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                answered.append(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif asked == "HEAD":
                message = {**message, "body": b""}
            sent += len(message.get("body", b""))
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self.stopping.at_work.add(task)
        try:
            self.stopping.check()
            await self._admit(scope, receive, send_guarded)
        except RequestError as problem:
            await problem.response()(scope, receive, send_guarded)
        except asyncio.CancelledError:
            if not self.stopping.was_given_up(task):
                raise
            if not answered:
                await self.stopping.refusal().response()(scope, receive, send_guarded)
        except ConnectionAbortedError:
            pass  # nobody is left to answer
        except Exception:
            log.exception("unexpected error in %s %s", asked, scope["path"])
            if answered:
                raise
            unexpected = RequestError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "the server failed on this request; its log has the reason",
            )
            await unexpected.response()(scope, receive, send_guarded)
        finally:
            self.stopping.at_work.discard(task)
            # Without the version: it counts as the path that has none.
            route = api_path(getattr(scope.get("route"), "path", "other"))
            status = answered[0] if answered else 499  # the client went away
            method = asked if asked in METHODS else "other"
            seconds = time.perf_counter() - started
            self.metrics.request(method, route, status, seconds)
            if self.settings.access_log:
                log_access(scope, asked, status, sent, seconds)
        return route, status

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        path = route_path(scope)
        if not path:  # the page's addresses are relative to a folder
            folder = scope["path"].rpartition("/")[2]
            await RedirectResponse(f"{folder}/", HTTPStatus.PERMANENT_REDIRECT)(
                scope, receive, send
            )
            return
        path = api_path(path)
        self._check_token(path, headers)
        if scope["method"] in READING_METHODS:
            if scope["method"] == "HEAD":
                scope["method"] = "GET"  # whose body is not sent
            await self.app(scope, receive, send)
            return
        self._check_origin(headers)
        self._check_json(path, headers)
        client = scope["client"][0] if scope.get("client") else ""
        counted = [client]
        self._check_room(client)
        if path == "/everything":
            counted.append(f"everything of {client}")
            self._check_everything(counted[1])
        self.in_work += 1
        self.in_work_of.update(counted)

        async def sending(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if is_last and len(counted) > 1:  # who has this answer may ask for the next
                self.in_work_of.subtract([counted.pop()])
            await send(message)

        try:
            body = await self._read_body(path, headers, receive)
            await self.app(scope, replay(body, receive), sending)
        finally:
            self.in_work -= 1
            self.in_work_of.subtract(counted)
            self.in_work_of = +self.in_work_of  # without those at zero

    def _check_host(self, headers: Headers) -> None:
        if not self.hosts.admit(headers.get("host", "")):
            raise RequestError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this server does not answer to that host name; "
                "start it with --allowed-host NAME to allow it",
            )

    def _check_token(self, path: str, headers: Headers) -> None:
        token = self.settings.token
        if token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not same:
            raise RequestError(
                HTTPStatus.UNAUTHORIZED,
                "this server wants its token; send it as `Authorization: Bearer TOKEN`, or open "
                "the page by the address that the server has printed",
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin in self.settings.cors_origins:
            return
        try:
            same = origin is None or urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:  # no URL
            same = False
        if not same or headers.get("sec-fetch-site") == "cross-site":
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "requests from another site's page are not answered; use the page of this server",
            )

    def _check_json(self, path: str, headers: Headers) -> None:
        if path in JSON_PATHS and type_of(headers.get("content-type")) != "application/json":
            raise RequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "the Content-Type must be application/json",
            )

    def _check_room(self, client: str) -> None:
        settings = self.settings
        if self.in_work_of[client] >= settings.max_requests_per_client:
            raise RequestError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{settings.max_requests_per_client} requests of this client are in work already; "
                "wait for one of them",
                retry_after=1,
            )
        if self.in_work >= settings.max_requests:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{settings.max_requests} requests are in work already; try again in a moment",
                retry_after=1,
            )

    def _check_everything(self, key: str) -> None:
        limit = self.settings.everything_queue_per_client
        if self.in_work_of[key] >= limit:
            raise RequestError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f'"everything" of this client is in work already ({limit} at once); wait for it',
                retry_after=1,
            )

    async def _read_body(self, path: str, headers: Headers, receive: Receive) -> bytes:
        upload = path == "/embed"
        limit = self.settings.max_upload_bytes if upload else self.settings.max_json_bytes
        too_large = RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request body is larger than {limit / 2**20:g} MiB; send a smaller one",
        )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        try:
            with fail_after(self.settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionAbortedError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise too_large
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the request body did not arrive within {self.settings.body_timeout:g} s; "
                "send it again",
            ) from None


def _below_root(scope: Scope, root_path: str) -> Scope:
    """A scope of our own, with the prefix that a proxy has before the server's paths.

    Checks and routes must see the same path, whether the proxy has taken the prefix away or not.
    """
    if not root_path:
        return {**scope}
    path = scope["path"]
    if path != root_path and not path.startswith(f"{root_path}/"):
        path = root_path + path
    return {**scope, "path": path, "root_path": root_path}


def route_path(scope: Scope) -> str:
    """The path that routes are matched with: what follows the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def api_path(path: str) -> str:
    """A path without the API's version, which changes nothing in what is checked."""
    return path.removeprefix(VERSION) if path.startswith(f"{VERSION}/") else path


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body whole, then what the connection says."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed

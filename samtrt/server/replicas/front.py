"""The application before several models: one port, one set of limits, one description."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from samtrt.server.guard.middleware import Guard, api_path, cross_origin, route_path
from samtrt.server.guard.stopping import Stopping
from samtrt.server.metrics import Metrics, exposition
from samtrt.server.model.lanes import unless_disconnected
from samtrt.server.problems import RequestError
from samtrt.server.replicas.exchange import Answer, Forwarded, ReplicaLostError, Replicas
from samtrt.server.replicas.routing import key_of, label_of
from samtrt.server.settings import Settings
from samtrt.server.tracing import Tracing

# Of an answer that tells how a replica is; one that does not answer in time is left out.
_ASK_SECONDS = 5.0

_Handler = Callable[[Request], Awaitable[Response]]


def create_front(
    replicas: Replicas, settings: Settings, tracing: Tracing | None = None
) -> Starlette:
    """The application before the replicas.

    Args:
        replicas: where requests go; who serves starts and stops them.
        settings: limits of clients, hosts, token; as of ``create_app``.
        tracing: makes spans of requests; None for nothing.
    """
    metrics, stopping = Metrics(), Stopping()
    tracing = tracing or Tracing()
    front = _Front(replicas, metrics)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        tracing.close()

    routes = [
        Route("/health", front.health, methods=["GET"]),
        Route("/ready", front.ready, methods=["GET"]),
    ]
    if settings.metrics:
        routes.append(Route("/metrics", front.metrics_of_all, methods=["GET"]))
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    routes.append(Route("/{path:path}", front.forward, methods=methods))
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.settings, app.state.stopping = settings, stopping
    app.add_middleware(
        Guard, settings=settings, metrics=metrics, stopping=stopping, tracing=tracing
    )
    cross_origin(app, settings)
    return app


class _Front:
    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self.replicas = replicas
        self.metrics = metrics

    async def forward(self, request: Request) -> Response:
        """The answer of the replica that the request belongs to, or of the next."""
        path = route_path(request.scope)
        below = api_path(path)
        request.scope["route"] = SimpleNamespace(path=label_of(below))
        body = await request.body()
        key = await key_of(below, request, await self.replicas.computed_by())
        forwarded = Forwarded.of(request.scope, path, body)
        candidates = self.replicas.candidates(key)
        is_upload = below == "/embed"
        if key is not None and not is_upload and not self.replicas.shared:
            candidates = candidates[:1]  # nobody else has it
        return await unless_disconnected(request, self._first(candidates, forwarded))

    async def _first(self, candidates: list[str], request: Forwarded) -> Response:
        busy: Response | None = None
        for name in candidates:
            try:
                answer = await self.replicas.send(name, request)
                response = await _response(answer)
            except ReplicaLostError:
                continue
            if answer.status == HTTPStatus.SERVICE_UNAVAILABLE and self.replicas.shared:
                busy = response
                continue  # another may have room, and finds the embedding
            return response
        if busy is not None:
            return busy
        raise _lost()

    async def _ask(self, names: list[str], path: str, request: Request) -> dict[str, bytes]:
        """What each of these replicas answers to GET, of those that do."""
        asked = Forwarded("GET", path, b"", Forwarded.of(request.scope, path, b"").headers, b"")

        async def ask(name: str) -> bytes | None:
            try:
                answer = await self.replicas.send(name, asked)
                content = b"".join([part async for part in answer.body])
            except ReplicaLostError:
                return None
            return content if answer.status == HTTPStatus.OK else None

        found = await asyncio.gather(
            *(asyncio.wait_for(ask(name), _ASK_SECONDS) for name in names), return_exceptions=True
        )
        return {
            name: content
            for name, content in sorted(zip(names, found, strict=True))
            if isinstance(content, bytes)
        }

    def _some(self) -> list[str]:
        """All replicas, or any where they cannot be told apart."""
        return self.replicas.all() or self.replicas.candidates(None)[:1]

    async def ready(self, request: Request) -> Response:
        """Whether any replica answers."""
        request.scope["route"] = SimpleNamespace(path="/ready")
        if not await self._ask(self._some(), "/ready", request):
            raise _none_ready()
        return JSONResponse({"status": "ready"})

    async def health(self, request: Request) -> Response:
        """As of one server, with the queues and embeddings of all."""
        request.scope["route"] = SimpleNamespace(path="/health")
        found = [
            json.loads(text)
            for text in (await self._ask(self._some(), "/health", request)).values()
        ]
        if not found:
            raise _none_ready()
        total: dict[str, Any] = {**found[0], "replicas": len(found)}
        total["cached_embeddings"] = sum(one["cached_embeddings"] for one in found)
        total["lanes"] = {
            name: {
                key: sum(one["lanes"][name][key] for one in found)
                for key in ("pending", "capacity")
            }
            for name in found[0]["lanes"]
        }
        return JSONResponse(total)

    async def metrics_of_all(self, request: Request) -> Response:
        """Each replica's metrics, and the front's, told apart by the label ``replica``."""
        request.scope["route"] = SimpleNamespace(path="/metrics")
        texts = {
            name: content.decode()
            for name, content in (await self._ask(self.replicas.all(), "/metrics", request)).items()
        }
        texts["front"] = generate_latest(self.metrics.registry).decode()
        registry = CollectorRegistry()
        registry.register(_Joined(texts))
        return exposition(registry)


def _lost() -> RequestError:
    return RequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the process that had this request has ended, and another takes its place; "
        "try again in a moment",
        retry_after=1,
    )


def _none_ready() -> RequestError:
    return RequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "no process of this server answers; its log has the reason",
        retry_after=2,
    )


async def _response(answer: Answer) -> Response:
    """A replica's answer for the client: whole, so that it can come from another replica, but for
    what is sent as it is found."""
    response: Response
    if answer.is_streamed:
        response = StreamingResponse(_to_the_end(answer.body), answer.status)
    else:
        response = Response(b"".join([part async for part in answer.body]), answer.status)
    length = [pair for pair in response.raw_headers if pair[0] == b"content-length"]
    headers = [pair for pair in answer.headers if pair[0] != b"content-length"]
    response.raw_headers = [*headers, *length]
    return response


async def _to_the_end(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of an answer; where its replica ends before it, that is the last."""
    try:
        async for part in lines:
            yield part
    except ReplicaLostError:
        yield b"\n" + _lost().line()


class _Joined(Collector):
    """Several expositions as one.

    Args:
        texts: by the value of their label ``replica``.
    """

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def collect(self) -> list[Metric]:
        joined: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                kept = joined.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    kept.add_sample(sample.name, labels, sample.value)
        return list(joined.values())

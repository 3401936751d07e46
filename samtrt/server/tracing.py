"""OpenTelemetry's spans of requests and of the model's work; nothing where nobody traces.

The extra ``otel`` brings what `samtrt serve --trace` needs; the exporter takes its address, headers
and sampling from OpenTelemetry's own environment variables.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import Scope

from samtrt.errors import SamtrtError
from samtrt.hints import install

Answered = Callable[[str, int], None]


class Tracing:
    """Makes spans.

    Args:
        provider: an OpenTelemetry ``TracerProvider``; None for no spans.
    """

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("samtrt") if provider is not None else None

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[Any]:
        """A span around the block, below the current one; gives it, or None."""
        if self._tracer is None:
            yield None
            return
        named = {f"samtrt.{key}": value for key, value in attributes.items()}
        with self._tracer.start_as_current_span(name, attributes=named) as span:
            yield span

    @contextmanager
    def request(self, scope: Scope, method: str) -> Iterator[Answered]:
        """The span of a request, below that of its ``traceparent`` header.

        Gives a function that takes the route and the status of the answer.
        """
        if self._tracer is None:
            yield lambda route, status: None
            return
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, Status, StatusCode

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        with self._tracer.start_as_current_span(
            method,
            propagate.extract(headers),
            SpanKind.SERVER,
            {"http.request.method": method},
        ) as span:

            def answered(route: str, status: int) -> None:
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

            yield answered

    def close(self) -> None:
        """Sends what is not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()


def exporting() -> Tracing:
    """Spans that are sent as OTLP over HTTP, as OpenTelemetry's environment variables say.

    Raises:
        SamtrtError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SamtrtError(
            f"{error.name} is not installed, and --trace needs it; run `{install('otel')}`"
        ) from error
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before this name.
    named = Resource.create()
    if str(named.attributes.get("service.name", "")).startswith("unknown_service"):
        named = named.merge(Resource({"service.name": "samtrt"}))
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)

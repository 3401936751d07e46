"""What the server tells Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from samtrt.server.model.lanes import Lane
from samtrt.server.model.memory import LRUCache

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters, histograms and gauges of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "samtrt_requests",
            "Answered requests",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "samtrt_request_seconds",
            "Time from a request's headers to the end of its answer",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.work_seconds = Histogram(
            "samtrt_work_seconds",
            "Time of the model's work in a worker thread, waiting not included",
            ("work",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def watch_lane(self, lane: Lane) -> None:
        """Reports how many jobs a lane holds and how many it may hold."""
        pending = Gauge(
            f"samtrt_{lane.name}_pending", "Jobs that wait or run", registry=self.registry
        )
        pending.set_function(lambda: lane.pending)
        capacity = Gauge(
            f"samtrt_{lane.name}_capacity", "Jobs that may wait or run", registry=self.registry
        )
        capacity.set(lane.capacity)

    def watch_cache(self, cache: LRUCache) -> None:
        """Reports a cache's size and how often it had what was asked for."""
        values = {
            "samtrt_cache_bytes": ("Bytes of cached embeddings", lambda: cache.nbytes),
            "samtrt_cache_entries": ("Cached embeddings", lambda: len(cache)),
            "samtrt_cache_hits": ("Look-ups that found an embedding", lambda: cache.hits),
            "samtrt_cache_misses": ("Look-ups that found none", lambda: cache.misses),
            "samtrt_cache_evictions": ("Embeddings that had to leave", lambda: cache.evictions),
        }
        for name, (text, function) in values.items():
            Gauge(name, text, registry=self.registry).set_function(function)

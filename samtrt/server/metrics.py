"""What the server tells Prometheus."""

from collections.abc import Iterator
from typing import Protocol

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from samtrt.server.model.lanes import Lane
from samtrt.server.model.memory import LRUCache

# From a mask on a fast GPU to "everything" on a CPU.
SECONDS = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 20, 60, 120, 300),
)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Counted(Protocol):
    """What counts its own look-ups."""

    hits: int
    misses: int


class Metrics:
    """Counters, histograms and gauges of one application, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "samtrt_requests", "Answered requests", ("method", "route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "samtrt_request_seconds",
            "Time from a request's headers to the end of its answer",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge(
            "samtrt_requests_in_progress", "Requests at work", registry=registry
        )
        self.work_seconds = Histogram(
            "samtrt_work_seconds",
            "Time of the model's work in a worker thread, waiting not included",
            ("work",),
            buckets=SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "samtrt_queue_wait_seconds",
            "Time from a job's arrival in a queue to its start",
            ("queue",),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "samtrt_encode_batch_pictures",
            "Pictures that were encoded together",
            buckets=COUNTS,
            registry=registry,
        )
        self.prompts = Histogram(
            "samtrt_masks_prompts", "Prompts of a mask request", buckets=COUNTS, registry=registry
        )
        self._pending = Gauge(
            "samtrt_queue_length", "Jobs that wait or run", ("queue",), registry=registry
        )
        self._capacity = Gauge(
            "samtrt_queue_capacity", "Jobs that may wait or run", ("queue",), registry=registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def watch_lane(self, lane: Lane) -> None:
        """Reports how many jobs a lane holds, how many it may hold, and how long they wait."""
        self._pending.labels(lane.name).set_function(lambda: lane.pending)
        self._capacity.labels(lane.name).set(lane.capacity)
        lane.waited = self.wait_seconds.labels(lane.name).observe

    def watch_cache(self, cache: LRUCache) -> None:
        """Reports a cache's size and how often it had what was asked for."""
        size = Gauge("samtrt_cache_bytes", "Bytes of cached embeddings", registry=self.registry)
        size.set_function(lambda: cache.nbytes)
        count = Gauge("samtrt_cache_entries", "Cached embeddings", registry=self.registry)
        count.set_function(lambda: len(cache))
        self.registry.register(_LookUps("samtrt_cache", "embeddings in memory", cache))

    def watch_store(self, store: Counted) -> None:
        """Reports how often the shared store had what was asked for."""
        self.registry.register(_LookUps("samtrt_store", "embeddings in the store", store))

    def watch_model(self, computed_by: str, device: torch.device) -> None:
        """Says what computes; on a GPU, how much of its memory is taken."""
        model = Info("samtrt_model", "What computes the embeddings", registry=self.registry)
        model.info({"computed_by": computed_by, "device": str(device)})
        if device.type != "cuda":
            return
        memory = {
            "allocated": ("Memory of tensors", lambda: torch.cuda.memory_allocated(device)),
            "reserved": ("Memory that torch holds", lambda: torch.cuda.memory_reserved(device)),
            "free": ("Memory that nobody holds", lambda: torch.cuda.mem_get_info(device)[0]),
            "total": ("Memory of the GPU", lambda: torch.cuda.mem_get_info(device)[1]),
        }
        for name, (text, function) in memory.items():
            gauge = Gauge(f"samtrt_gpu_memory_{name}_bytes", text, registry=self.registry)
            gauge.set_function(function)


def exposition(registry: CollectorRegistry) -> Response:
    """What a registry has, for Prometheus."""
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


class _LookUps(Collector):
    """Counters that a cache keeps itself."""

    def __init__(self, name: str, what: str, counted: Counted) -> None:
        self._name, self._what, self._counted = name, what, counted

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name in ("hits", "misses", "evictions", "errors"):
            value = getattr(self._counted, name, None)
            if value is not None:
                text = f"{name.capitalize()} of {self._what}"
                yield CounterMetricFamily(f"{self._name}_{name}", text, value)

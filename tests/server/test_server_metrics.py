"""Metrics by Prometheus's conventions, a dashboard of those that exist, spans of requests."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from server_support import encoded, picture, running, tiny_model

from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.metrics import Metrics
from samtrt.server.tracing import Tracing

ROOT = Path(__file__).resolve().parents[2]
PNG = {"Content-Type": "image/png"}
UNITS = ("_seconds", "_bytes", "_pictures", "_prompts", "_entries", "_length", "_capacity")


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


def work(client: httpx.Client) -> None:
    """A picture, its masks twice, and a request that is refused."""
    name = client.post("/v1/embed", content=encoded(picture(1)), headers=PNG).json()["id"]
    body = {"id": name, "prompts": [{"box": [20, 30, 120, 140]}] * 3}
    assert client.post("/v1/masks", json=body).status_code == 200
    assert client.post("/masks", json={"id": name, "box": [1, 2, 30, 40]}).status_code == 200
    assert client.post("/v1/masks", json={"id": "0" * 64, "box": [1, 2, 3, 4]}).status_code == 404


@pytest.fixture(scope="module")
def families(sam: Sam) -> Iterator[dict[str, Any]]:
    with running(create_app(sam)) as url, httpx.Client(base_url=url, timeout=60) as client:
        work(client)
        text = client.get("/metrics").text
    yield {family.name: family for family in text_string_to_metric_families(text)}


def sample(families: dict[str, Any], family: str, name: str, **labels: str) -> float:
    (found,) = [
        item.value
        for item in families[family].samples
        if item.name == name and labels.items() <= item.labels.items()
    ]
    return float(found)


def test_names_keep_the_conventions(families: dict[str, Any]) -> None:
    ours = {
        name: family
        for name, family in families.items()
        if name.startswith("samtrt_") and not name.endswith("_created")  # the library's own
    }
    assert len(ours) >= 14
    for name, family in ours.items():
        assert family.documentation and not family.documentation.endswith("."), name
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
        if family.type == "counter":
            assert {item.name for item in family.samples} <= {f"{name}_total", f"{name}_created"}
        elif family.type == "histogram":
            assert name.endswith(UNITS), name
        elif name not in ("samtrt_requests_in_progress", "samtrt_model_info"):
            assert family.type == "gauge" and name.endswith(UNITS), name


def test_numbers_are_what_happened(families: dict[str, Any]) -> None:
    masks = {"route": "/masks", "method": "POST"}
    for status, wanted in (("200", 2), ("404", 1)):
        count = sample(families, "samtrt_requests", "samtrt_requests_total", **masks, status=status)
        assert count == wanted
    assert sample(families, "samtrt_masks_prompts", "samtrt_masks_prompts_sum") == 4
    assert sample(families, "samtrt_masks_prompts", "samtrt_masks_prompts_count") == 2
    assert (
        sample(families, "samtrt_encode_batch_pictures", "samtrt_encode_batch_pictures_count") == 1
    )
    assert sample(families, "samtrt_cache_hits", "samtrt_cache_hits_total") == 2
    assert sample(families, "samtrt_cache_misses", "samtrt_cache_misses_total") == 2
    assert sample(families, "samtrt_queue_capacity", "samtrt_queue_capacity", queue="decode") == 32
    waited = sample(
        families, "samtrt_queue_wait_seconds", "samtrt_queue_wait_seconds_count", queue="decode"
    )
    assert waited == 2
    assert sample(families, "samtrt_requests_in_progress", "samtrt_requests_in_progress") == 1
    bounds = {
        item.labels["le"]
        for item in families["samtrt_work_seconds"].samples
        if item.name.endswith("_bucket")
    }
    assert min(map(float, bounds)) == 0.0002


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 4))
    metrics = Metrics()
    metrics.watch_model("cuda fp16", torch.device("cuda", 1))
    text = generate_latest(metrics.registry).decode()
    for name, value in (("allocated", 1), ("reserved", 2), ("free", 3), ("total", 4)):
        assert f"samtrt_gpu_memory_{name}_bytes {value}.0" in text
    assert 'samtrt_model_info{computed_by="cuda fp16",device="cuda:1"} 1.0' in text


def test_every_query_of_the_dashboard_is_of_a_metric_that_exists(
    families: dict[str, Any],
) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text("utf-8"))
    names = {item.name for family in families.values() for item in family.samples}
    names |= {f"samtrt_gpu_memory_{kind}_bytes" for kind in ("reserved", "free", "total")}
    labels = {
        (item.name, label)
        for family in families.values()
        for item in family.samples
        for label in item.labels
    }
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [item["query"]["query"] for item in dashboard["templating"]["list"][1:]]
    assert len(queries) > 15
    for query in queries:
        asked = re.findall(r"\b((?:samtrt|process)_\w+)", query)
        assert asked and set(asked) <= names, query
        for name, matchers in re.findall(r"\b((?:samtrt|process)_\w+)\{([^}]*)\}", query):
            for label in re.findall(r"(\w+)=", matchers):
                assert label == "instance" or (name, label) in labels, (query, label)
        for by in re.findall(r"by \(([^)]*)\)", query):
            for label in by.split(", "):
                assert label in ("instance", "le") or (asked[0], label) in labels, query
        assert query.count("(") == query.count(")")
    panels = [panel["gridPos"] for panel in dashboard["panels"]]
    places = [(panel["x"], panel["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_spans_of_requests_and_work(sam: Sam) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="`make test` installs it")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = trace.TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(sam, tracing=Tracing(provider))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.headers["traceparent"] = parent
        work(client)
    finished = exporter.get_finished_spans()
    named = [span.name for span in finished]
    masks = [span for span in finished if span.name == "POST /masks"]
    spans = {span.name: span for span in reversed(finished)}  # the first of a name
    for request, inner in (
        ("POST /embed", ("decode picture", "encode")),
        ("POST /masks", ("decode masks",)),
    ):
        span = spans[request]
        assert f"{span.context.trace_id:032x}" == parent[3:35]
        assert f"{span.parent.span_id:016x}" == parent[36:52]
        for name in inner:
            assert spans[name].parent.span_id == span.context.span_id, name
            assert span.start_time <= spans[name].start_time <= spans[name].end_time
    assert spans["encode"].attributes["samtrt.batch"] == 1
    assert spans["decode masks"].attributes["samtrt.prompts"] == 3
    statuses = [span.attributes["http.response.status_code"] for span in masks]
    assert statuses == [200, 200, 404]
    assert spans["POST /embed"].attributes["http.route"] == "/embed"
    assert sorted(named) == sorted(
        ["decode picture", "encode", "POST /embed", *["decode masks"] * 2, *["POST /masks"] * 3]
    )

"""Masks of everything as they are found: a line for each batch of points, and how it ended."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from server_support import encoded, picture, running, tiny_model

from samtrt.decoders.torch import TorchDecoder
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

LINES = {"Accept": "application/x-ndjson"}
# A random model is never confident.
UNFILTERED = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


@pytest.fixture(scope="module")
def client(sam: Sam) -> Iterator[httpx.Client]:
    with running(create_app(sam)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def embed(client: httpx.Client) -> str:
    headers = {"Content-Type": "image/png"}
    return client.post("/embed", content=encoded(picture(2)), headers=headers).json()["id"]


def events_of(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", "/everything", json=body, headers=LINES) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.iter_lines()]


def test_lines_lead_to_the_generators_masks(client: httpx.Client, sam: Sam) -> None:
    options = {"points_per_side": 12, "box_nms_thresh": 0.7, **UNFILTERED}  # 144 points: 3 batches
    body = {"id": embed(client), **options}
    *progress, last = events_of(client, body)
    assert [(event["points_done"], event["points_total"]) for event in progress] == [
        (64, 144),
        (128, 144),
        (144, 144),
    ]
    assert last == {"dataset": client.post("/everything", json=body).json()}
    shown: dict[int, Any] = {}
    for event in progress:
        assert not set(event["dropped"]) - set(shown)
        for number in event["dropped"]:
            del shown[number]
        for mask in event["found"]:
            assert mask["id"] not in shown
            shown[mask["id"]] = mask["segmentation"]
    # Here no mask was dropped for one that was dropped itself: what was shown is the end.
    final = [annotation["segmentation"] for annotation in last["dataset"]["annotations"]]
    key = json.dumps
    assert sorted(map(key, shown.values())) == sorted(map(key, final))
    generator = SamAutomaticMaskGenerator(sam, **options, output_mode="coco_rle")
    assert [record["segmentation"] for record in generator.generate(picture(2))] == final


def test_a_problem_before_the_first_line_has_its_status(client: httpx.Client) -> None:
    response = client.post("/everything", json={"id": "0" * 64}, headers=LINES)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_a_problem_after_the_first_line_is_the_last(sam: Sam) -> None:
    app = create_app(sam, settings=replace(Settings(), everything_masks=250))
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        *progress, last = events_of(
            client, {"id": embed(client), "points_per_side": 16, "box_nms_thresh": 1, **UNFILTERED}
        )
    assert progress and progress[-1]["points_done"] < 256
    assert last["problem"]["status"] == 422
    assert "more than 250 masks" in last["problem"]["detail"]


def test_the_work_ends_when_the_client_leaves(sam: Sam) -> None:
    batches = []

    class Slow(TorchDecoder):
        def __call__(self, *arguments: Any) -> Any:
            batches.append(arguments)
            time.sleep(0.1)
            return super().__call__(*arguments)

    app = create_app(sam)
    app.state.studio.everything.decoder = Slow(sam.decoder)
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        body = {"id": embed(client), "points_per_side": 64}  # 64 batches
        with client.stream("POST", "/everything", json=body, headers=LINES) as response:
            assert json.loads(next(response.iter_lines()))["points_done"] == 64
        deadline = time.monotonic() + 30
        while client.get("/health").json()["lanes"]["everything"]["pending"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert 0 < len(batches) < 64

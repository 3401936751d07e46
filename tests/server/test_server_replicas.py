"""Several processes behind one port: every request finds its picture, whatever ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_support import address_of, encoded, picture, tiny_model

from samtrt.errors import SamtrtError
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import load_sam
from samtrt.server.options import ServeOptions, from_text, to_text
from samtrt.server.replicas.processes import (
    ProcessReplicas,
    cpu_environments,
    gpu_environments,
)
from samtrt.server.replicas.routing import ranked

PNG = {"Content-Type": "image/png"}
POINT = {"point_coords": [[100, 75]], "point_labels": [1]}
PATIENCE = 90


@contextmanager
def serving(*flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """The console command with these flags; its URL and process."""
    command = [sys.executable, "-m", "samtrt", "serve", "--params", str(tiny_model()), "--no-page"]
    command += ["--port", "0", "--backend", "cpu", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield address_of(process), psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()


def replicas(front: psutil.Process) -> list[psutil.Process]:
    return [
        child for child in front.children() if "samtrt.server.replicas.worker" in child.cmdline()
    ]


def embed(url: str, seed: int) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/embed", content=encoded(picture(seed)), headers=PNG, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def areas(url: str, name: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/masks", json={"id": name, **POINT}, timeout=60)


def expected_areas(count: int) -> list[list[int]]:
    predictor = SamPredictor(load_sam(tiny_model() / "engine", tiny_model()))
    found = []
    for seed in range(count):
        predictor.set_image(picture(seed))
        masks, scores, _ = predictor.predict(np.array([[100, 75]]), np.array([1]))
        found.append([int(masks[index].sum()) for index in np.argsort(-scores)])
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, psutil.Process]]:
    with serving("--workers", "2") as found:
        yield found


def test_every_request_finds_its_picture(server: tuple[str, psutil.Process]) -> None:
    url, _ = server
    wanted = expected_areas(8)
    with ThreadPoolExecutor(4) as threads:
        ids = [one["id"] for one in threads.map(lambda seed: embed(url, seed), range(8))]
        answers = list(threads.map(lambda name: areas(url, name), ids * 2))
    for number, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        assert [mask["area"] for mask in answer.json()["masks"]] == wanted[number % 8]
    assert embed(url, 0)["cached"]
    data = httpx.get(f"{url}/v1/embed/{ids[0]}")
    assert len(data.content) == 4 * 256 * 16 * 16
    assert httpx.head(f"{url}/v1/embed/{ids[0]}").headers["content-length"] == "262144"
    known = {"If-None-Match": data.headers["etag"]}
    assert httpx.get(f"{url}/v1/embed/{ids[0]}", headers=known).status_code == 304

    health = httpx.get(f"{url}/health").json()
    assert health["replicas"] == 2 and health["cached_embeddings"] == 8
    assert health["lanes"]["encode"]["capacity"] == 32
    families = {
        family.name: family
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    }
    pictures = {
        sample.labels["replica"]: sample.value
        for sample in families["samtrt_encode_batch_pictures"].samples
        if sample.name.endswith("_sum")
    }
    assert pictures["0"] > 0 and pictures["1"] > 0  # both work
    assert pictures["0"] + pictures["1"] == 8  # and no picture is encoded twice
    front = [
        sample.labels["route"]
        for sample in families["samtrt_requests"].samples
        if sample.labels["replica"] == "front" and sample.name.endswith("_total")
    ]
    assert {"/embed", "/masks", "/embed/{embedding_id}"} <= set(front)


def test_what_is_refused_is_refused_as_by_one_server(server: tuple[str, psutil.Process]) -> None:
    url, _ = server
    for body, status in (
        ({"id": "0" * 64, "box": [0, 0, 5, 5]}, 404),
        ({"id": "nonsense", "box": [0, 0, 5, 5]}, 422),
        ([1], 422),
        ({}, 422),
    ):
        answer = httpx.post(f"{url}/v1/masks", json=body)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    headers = {"Content-Type": "application/json"}
    assert httpx.post(f"{url}/masks", content=b"[" * 9999, headers=headers).status_code in (
        400,
        422,
    )
    assert httpx.post(f"{url}/embed", content=b"GIF89a", headers=PNG).status_code == 415
    assert httpx.get(f"{url}/nothing-here").status_code == 404
    assert httpx.get(f"{url}/..%2F..%2Fetc").status_code == 404
    assert httpx.delete(f"{url}/health").status_code == 405
    assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 421
    evil = {"Origin": "http://evil.example"}
    assert httpx.post(f"{url}/masks", json={}, headers=evil).status_code == 403
    same = {"Origin": url}
    assert httpx.post(f"{url}/masks", json={}, headers=same).status_code == 422
    assert "/v1/masks" in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_everything_comes_in_lines(server: tuple[str, psutil.Process]) -> None:
    url, _ = server
    body = {
        "id": embed(url, 1)["id"],
        "points_per_side": 4,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
    }
    headers = {"Accept": "application/x-ndjson"}
    with httpx.stream(
        "POST", f"{url}/v1/everything", json=body, headers=headers, timeout=60
    ) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        events = [json.loads(line) for line in answer.iter_lines()]
    whole = httpx.post(f"{url}/v1/everything", json=body, timeout=60).json()
    assert len(events) > 1 and events[-1]["dataset"] == whole


def test_a_replica_that_is_killed_loses_no_request(server: tuple[str, psutil.Process]) -> None:
    """Pictures go to another, requests about a picture that went with it are told to come again,
    and another process takes its place."""
    url, front = server
    wanted = expected_areas(6)
    ids = [embed(url, seed)["id"] for seed in range(6)]
    before = {process.pid for process in replicas(front)}
    victim = replicas(front)[0]
    statuses: Counter[int] = Counter()

    def segment(seed: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = areas(url, ids[seed])
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                assert [mask["area"] for mask in answer.json()["masks"]] == wanted[seed]
                return
            if answer.status_code == 404:
                assert embed(url, seed)["id"] == ids[seed]
            else:
                assert answer.status_code == 503, answer.text
                time.sleep(int(answer.headers["retry-after"]) * 0.1)
        pytest.fail(f"picture {seed} was not answered")

    victim.kill()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(segment, [*range(6)] * 3))
    assert statuses[200] == 18
    assert httpx.get(f"{url}/ready").status_code == 200
    deadline = time.monotonic() + PATIENCE
    while httpx.get(f"{url}/health").json()["replicas"] != 2:
        assert time.monotonic() < deadline, "no process has taken its place"
        time.sleep(0.1)
    after = {process.pid for process in replicas(front)}
    assert len(after) == 2 and len(after & before) == 1
    for seed in range(6):
        segment(seed)


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    command = [sys.executable, "-m", "samtrt", "serve", "--params", str(tiny_model()), "--no-page"]
    command += ["--port", "0", "--backend", "tensorrt", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "did not start" in done.stderr.splitlines()[-1]


def test_only_the_pictures_of_a_replica_that_leaves_move() -> None:
    names = ["0", "1", "2", "3"]
    keys = [f"{n:064x}" for n in range(400)]
    homes = {key: ranked(key, names)[0] for key in keys}
    assert all(60 < count < 140 for count in Counter(homes.values()).values())
    for key, home in homes.items():
        left = ranked(key, ["3", "0", "2"])
        assert left[0] == (home if home != "1" else ranked(key, names)[1])


def stand_in(says: str) -> ProcessReplicas:
    """One process that says this when it is up, and ends when its input does."""
    program = f"import json, os, sys; print({says}, flush=True); sys.stdin.read()"
    return ProcessReplicas([sys.executable, "-c", program], [{}], 1.0, False)


def test_a_replica_does_not_know_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTRT_TOKEN", "a-token-of-sixteen-letters-or-more")
    found = stand_in("json.dumps({'computed_by': os.environ.get('SAMTRT_TOKEN', 'no token')})")

    async def run() -> str:
        try:
            await found.start()
            (folder,) = {one.path.parent for one in found._processes.values()}
            assert folder.stat().st_mode & 0o777 == 0o700  # nobody else's sockets
            return await found.computed_by()
        finally:
            await found.stop()

    assert asyncio.run(run()) == "no token"


def test_what_is_no_replica_does_not_start() -> None:
    found = stand_in("'good morning'")

    async def run() -> None:
        try:
            await found.start()
        finally:
            await found.stop()

    with pytest.raises(SamtrtError, match="replica 0 did not start"):
        asyncio.run(run())


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_environments("all", 2) == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert gpu_environments("1", 2) == [{"CUDA_VISIBLE_DEVICES": "GPU-5a"}]
    with pytest.raises(SamtrtError, match="names GPU 2"):
        gpu_environments("0,2", 2)
    with pytest.raises(SamtrtError, match="--workers N"):
        gpu_environments("all", 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (threads,) = {one["OMP_NUM_THREADS"] for one in cpu_environments(os.cpu_count() or 1)}
    assert threads == "1"


def test_options_reach_a_replica() -> None:
    options = ServeOptions(tiny_model(), store="valkey://localhost", token_file=tiny_model())
    found = from_text(to_text(options))
    assert found.params == tiny_model() and found.store == options.store
    assert found.settings.token is None and found.settings.allowed_hosts == ("*",)
    assert found.settings.max_pixels == options.settings.max_pixels


def test_replicas_end_with_their_front(server: tuple[str, psutil.Process]) -> None:
    """However it ends. The last test of this server."""
    _, front = server
    processes = replicas(front)
    assert len(processes) == 2
    front.kill()
    _, alive = psutil.wait_procs(processes, 30)
    assert not alive

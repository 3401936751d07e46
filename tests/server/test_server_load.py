"""Sixteen clients at once: nothing is lost, nothing is mixed up, memory stays bounded."""

import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from server_support import encoded, picture, running, tiny_model

from samtrt.masks.predictor import SamPredictor
from samtrt.sam import load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

CLIENTS = 16
PICTURES = 24
CACHED = 8  # fewer than there are pictures, so that embeddings come and go
ENTRY = 256 * 16 * 16 * 4 + 1024
LIMITS = {
    # Small enough that clients run into every limit.
    "cache_bytes": CACHED * ENTRY,
    "encode_queue": 6,
    "decode_queue": 6,
    "max_requests_per_client": 12,
}
POINT = [100, 75]
SECONDS = 24


def serve(folder: Path, pipe: Connection) -> None:
    """The server's process, apart from the clients' so that its memory can be read."""
    app = create_app(load_sam(folder / "engine", folder), settings=replace(Settings(), **LIMITS))
    with running(app) as url:
        pipe.send(url)
        pipe.recv()


@pytest.fixture
def server() -> Iterator[tuple[str, psutil.Process]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(tiny_model(), theirs))
    process.start()
    try:
        assert ours.poll(60), "the server did not start"
        yield ours.recv(), psutil.Process(process.pid)
        ours.send("stop")
        process.join(20)
    finally:
        if process.is_alive():
            process.kill()
        process.join()


class Client(threading.Thread):
    """Embeds a picture, fetches its embedding, asks for masks; again and again."""

    def __init__(
        self, number: int, url: str, ends: float, files: list[bytes], areas: list[list[int]]
    ) -> None:
        super().__init__(name=f"client {number}")
        self.random = random.Random(number)
        self.url, self.ends, self.files, self.areas = url, ends, files, areas
        self.answers: Counter[int] = Counter()
        self.rounds = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.url, timeout=60) as client:
                while time.monotonic() < self.ends:
                    self.one_round(client)
                    self.rounds += 1
        except BaseException as error:
            self.error = error

    def one_round(self, client: httpx.Client) -> None:
        which = self.random.randrange(len(self.files))
        headers = {"Content-Type": "image/png"}
        while True:
            answer = self.ask(client, "POST", "/embed", content=self.files[which], headers=headers)
            prompt = {
                "id": answer.json()["id"],
                "point_coords": [POINT],
                "point_labels": [1],
            }
            masks = self.ask(client, "POST", "/masks", json=prompt)
            if masks.status_code != 404:  # evicted between the two requests: embed it again
                break
        found = [mask["area"] for mask in masks.json()["masks"]]
        assert found == self.areas[which], f"masks of another picture than {which}"

    def ask(self, client: httpx.Client, method: str, path: str, **body: object) -> httpx.Response:
        """Asks until the server has room; everything else than that and 404 is an error."""
        while True:
            response = client.request(method, path, **body)
            self.answers[response.status_code] += 1
            if response.status_code not in (429, 503):
                assert response.status_code in (200, 404), response.text
                return response
            assert int(response.headers["retry-after"]) >= 1
            time.sleep(self.random.uniform(0.02, 0.1))  # a polite client would wait longer


def areas_of(predictor: SamPredictor, image: np.ndarray) -> list[int]:
    """The areas of the masks at POINT, the best mask first."""
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(np.array([POINT]), np.array([1]))
    return [int(masks[index].sum()) for index in np.argsort(-scores)]


def test_parallel_clients_lose_nothing(server: tuple[str, psutil.Process]) -> None:
    url, process = server
    images = [picture(seed) for seed in range(PICTURES)]
    files = [encoded(image) for image in images]
    predictor = SamPredictor(load_sam(tiny_model() / "engine", tiny_model()))
    areas = [areas_of(predictor, image) for image in images]
    assert len({tuple(found) for found in areas}) == PICTURES  # a mix-up would be seen

    ends = time.monotonic() + SECONDS
    clients = [Client(number, url, ends, files, areas) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    memory = []
    while time.monotonic() < ends:
        memory.append(process.memory_info().rss)
        time.sleep(0.25)
    for client in clients:
        client.join(60)
        assert not client.is_alive(), f"{client.name} got no answer"
        assert client.error is None, client.error
        assert client.rounds > 0, f"{client.name} was starved"

    answers = sum((client.answers for client in clients), Counter())
    print(f"{sum(client.rounds for client in clients)} rounds, answers {dict(answers)}")
    print(f"memory {min(memory) / 2**20:.0f} to {max(memory) / 2**20:.0f} MiB")
    assert answers[429] + answers[503] > 0, "the limits were never reached"
    # Past the first half, in which pools and allocators fill, memory does not grow.
    half = len(memory) // 2
    assert max(memory[half:]) < 1.1 * max(memory[:half]) + 32 * 2**20

    health = httpx.get(f"{url}/health").json()
    assert all(lane["pending"] == 0 for lane in health["lanes"].values())
    assert health["cached_embeddings"] <= CACHED
    metrics = httpx.get(f"{url}/metrics").text
    for status, count in answers.items():
        counted = sum(
            float(line.rsplit(" ", 1)[1])
            for line in metrics.splitlines()
            if line.startswith("samtrt_requests_total{")
            and f'status="{status}"' in line
            and 'method="POST"' in line
        )
        assert counted == count, f"{count} answers {status}, {counted} counted by the server"

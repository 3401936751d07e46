"""Pictures that wait go together, nobody waits for others, and a choice is measured."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from server_support import encoded, picture, running, tiny_model

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import load_parameters
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.launch import encode_batch
from samtrt.server.model.batching import Batcher, best_batch
from samtrt.server.model.lanes import AbandonedError
from samtrt.server.settings import Settings

NEVER = threading.Event()


class Counting:
    """An encoder that counts its batches, behind a gate; an embedding is its picture's number."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)

    def __call__(self, images: Sequence[np.ndarray]) -> list[EmbeddedPicture]:
        numbers = [int(image[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        self.started.release()
        assert self.gate.wait(30)
        if 13 in numbers:
            raise RuntimeError("no thirteen")
        return [
            EmbeddedPicture(torch.full((1, 1, 1, 1), float(n)), (1, 1), (1, 1), 1) for n in numbers
        ]


def image(number: int) -> np.ndarray:
    return np.full((1, 1, 3), number, np.uint8)


def waiting(batcher: Batcher, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(batcher._waiting) != count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_goes_together() -> None:
    encode = Counting()
    batcher = Batcher(encode, largest=3)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(batcher, image(1), NEVER)
        assert encode.started.acquire(timeout=30)  # alone: nobody waits for a batch to fill
        others = []
        for number in range(2, 7):
            others.append(threads.submit(batcher, image(number), NEVER))
            waiting(batcher, number - 1)
        encode.gate.set()
        found = [job.result(30) for job in (first, *others)]
    assert encode.batches == [[1], [2, 3, 4], [5, 6]]
    assert [float(one.picture.features) for one in found] == [1, 2, 3, 4, 5, 6]
    assert [one.batch for one in found] == [1, 3, 3, 3, 2, 2]


def test_a_picture_that_fails_or_is_abandoned_takes_nothing_along() -> None:
    encode = Counting()
    batcher = Batcher(encode, largest=4)
    left = threading.Event()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(batcher, image(1), NEVER)
        assert encode.started.acquire(timeout=30)
        jobs = []
        for count, (number, event) in enumerate(((2, NEVER), (13, NEVER), (4, left), (5, NEVER))):
            jobs.append(threads.submit(batcher, image(number), event))
            waiting(batcher, count + 1)
        left.set()
        encode.gate.set()
        assert float(first.result(30).picture.features) == 1
        assert float(jobs[0].result(30).picture.features) == 2
        with pytest.raises(RuntimeError, match="thirteen"):
            jobs[1].result(30)
        with pytest.raises(AbandonedError):
            jobs[2].result(30)
        assert float(jobs[3].result(30).picture.features) == 5
    assert encode.batches == [[1], [2, 13, 5], [2], [13], [5]]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.010, 2: 0.020, 4: 0.040}, 1),  # nothing is gained, and the first would wait
        ({1: 0.010, 2: 0.011, 4: 0.060}, 2),
        ({1: 0.010, 2: 0.012, 4: 0.015, 8: 0.020}, 8),
    ],
)
def test_the_best_batch_is_measured(seconds: dict[int, float], best: int) -> None:
    def encode(images: Sequence[np.ndarray]) -> list[EmbeddedPicture]:
        time.sleep(5 * seconds[len(images)])
        return []

    assert best_batch(encode, 4) == best


@pytest.fixture(scope="module")
def batches_of_four(tmp_path_factory: pytest.TempPathFactory) -> Sam:
    engine = tmp_path_factory.mktemp("batch") / "engine"
    options = BuildOptions("cpu", "fp32", skip_parity_gate=True, max_batch_size=4)
    build_encoder(load_parameters(tiny_model()), engine, [], options)
    return load_sam(engine, tiny_model())


def test_the_engine_bounds_the_batch(batches_of_four: Sam, one_thread: None) -> None:
    assert encode_batch(batches_of_four, 4, 3) == 3
    assert encode_batch(batches_of_four, 4, None) in (1, 2, 4)
    assert encode_batch(batches_of_four, 1, None) == 1
    with pytest.raises(InputError, match="--max-batch-size 5"):
        encode_batch(batches_of_four, 4, 5)


def test_embeddings_of_a_batch_are_each_ones_own(
    batches_of_four: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP: pictures of several sizes that wait while the first is encoded."""
    sam = batches_of_four
    sizes = [(150, 200), (200, 150), (60, 90), (256, 256)]
    images = [picture(seed, *size) for seed, size in enumerate(sizes)]
    started, gate = threading.Event(), threading.Event()
    embed = Sam.embed

    def slow(self: Sam, *arguments: Any) -> Any:
        started.set()
        assert gate.wait(30)
        return embed(self, *arguments)

    monkeypatch.setattr(Sam, "embed", slow)
    app = create_app(sam, settings=replace(Settings(), encode_batch=4))

    def post(url: str, one: np.ndarray) -> str:
        headers = {"Content-Type": "image/png"}
        answer = httpx.post(f"{url}/v1/embed", content=encoded(one), headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["id"]
        return found

    with running(app) as url, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(post, url, images[0])]
        assert started.wait(30)
        jobs += [threads.submit(post, url, one) for one in images[1:]]
        waiting(app.state.studio.batcher, 3)
        gate.set()
        ids = [job.result(60) for job in jobs]
        metrics = httpx.get(f"{url}/metrics").text
        found = [httpx.get(f"{url}/v1/embed/{name}").content for name in ids]
    assert "samtrt_encode_batch_pictures_count 2.0" in metrics
    assert "samtrt_encode_batch_pictures_sum 4.0" in metrics
    predictor = SamPredictor(sam)
    for one, content in zip(images, found, strict=True):
        predictor.set_image(one)
        wanted = predictor.get_image_embedding().numpy()
        np.testing.assert_allclose(np.frombuffer(content, "<f4"), wanted.ravel(), atol=2e-5)

"""Embeddings that servers share, in a real Valkey or Redis."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from server_support import CONFIG, encoded, free_port, picture, running, tiny_model
from test_server_replicas import PNG, areas, embed, expected_areas, replicas, serving

from samtrt.errors import InputError, SamtrtError
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.model.store import Store

valkey = pytest.importorskip("valkey", reason="`make test` installs it")
ID = "a" * 64


class StoreServer:
    """The program, on a free port of the loopback."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.port = free_port()
        self.url = f"valkey://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        options += ["--dir", str(self.folder)]
        self.process = subprocess.Popen([self.program, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                valkey.Valkey.from_url(self.url).ping()
                return
            except valkey.ValkeyError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no store's server is installed; run tests/browser/install.sh")
        pytest.skip("neither valkey-server nor redis-server is installed")
    found = StoreServer(program, tmp_path)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


def test_what_is_kept_comes_back(server: StoreServer, sam: Sam) -> None:
    store = Store(server.url, 60)
    assert store.get(ID) is None
    embedded = sam.embed(picture(1))
    store.put(ID, embedded, 0.25)
    found = Store(server.url, 60).get(ID)  # another server's
    assert found is not None and found[1] == 0.25
    assert torch.equal(found[0].features, embedded.features)
    for name in ("original_size", "input_size", "img_size", "computed_by", "parameters_sha256"):
        assert getattr(found[0], name) == getattr(embedded, name)
    client = valkey.Valkey.from_url(server.url)
    (key,) = client.keys()
    assert key == b"samtrt:1:" + ID.encode() and 0 < client.ttl(key) <= 60
    assert (store.hits, store.misses, store.errors) == (0, 1, 0)


def test_damaged_values_are_no_embeddings(server: StoreServer, sam: Sam) -> None:
    store = Store(server.url, 60)
    store.put(ID, sam.embed(picture(1)), 0.25)
    client = valkey.Valkey.from_url(server.url)
    (key,) = client.keys()
    good = client.get(key)
    for bad in (
        b"",
        b"nonsense",
        good[:-1],
        good[:-1] + bytes([good[-1] ^ 1]),
        good.replace(b'"img_size": 256', b'"img_size": 1'),
        good.replace(b'"seconds"', b'"minutes"'),
    ):
        assert bad != good
        client.set(key, bad)
        assert store.get(ID) is None
    client.set(key, good)
    assert store.get(ID) is not None


def test_servers_find_each_others_embeddings(
    server: StoreServer, sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running(create_app(sam, store=Store(server.url, 60))) as first,
        running(create_app(sam, store=Store(server.url, 60))) as second,
    ):
        made = embed(first, 1)

        def never(*_: Any) -> None:
            raise AssertionError("encoded again")

        monkeypatch.setattr(Sam, "embed", never)
        found = embed(second, 1)
        assert found == {**made, "cached": True}
        answers = [areas(url, made["id"]).json() for url in (first, second)]
        assert answers[0] == answers[1] and answers[0]["masks"]
        third = create_app(sam, store=Store(server.url, 60))
        with running(third) as url:
            assert areas(url, made["id"]).json() == answers[0]  # never saw the picture
            metrics = httpx.get(f"{url}/metrics").text
            assert "samtrt_store_hits_total 1.0" in metrics
            assert areas(url, "0" * 64).status_code == 404


def test_embeddings_of_another_model_are_not_taken(server: StoreServer, sam: Sam) -> None:
    """Somebody has written them under an id of this model's."""
    app = create_app(sam, store=Store(server.url, 60))
    with running(app) as url:
        name = embed(url, 1)["id"]
        studio = app.state.studio
        kept = studio.cache.get(name)
        side = CONFIG.img_size // 16
        for other in (
            replace(kept.embedded, computed_by="another encoder"),
            replace(kept.embedded, parameters_sha256="0" * 64),
            replace(kept.embedded, features=torch.zeros(1, 8, 2 * side, 2 * side), img_size=512),
        ):
            studio.store.put(name, other, 0.1)
            with running(create_app(sam, store=Store(server.url, 60))) as second:
                assert areas(second, name).status_code == 404


def test_a_store_that_is_gone(server: StoreServer, sam: Sam) -> None:
    """What a server has itself goes on; what it would have to ask for is told to come again."""
    with running(create_app(sam, store=Store(server.url, 60))) as url:
        name = embed(url, 1)["id"]
        server.stop()
        assert areas(url, name).status_code == 200
        answer = areas(url, "0" * 64)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        assert "store" in answer.json()["detail"]
        server.start()
        assert areas(url, "0" * 64).status_code == 404
        server.stop()
    with pytest.raises(SamtrtError, match="does not answer"):
        Store(server.url, 60)


def test_addresses_that_are_none() -> None:
    for url in ("localhost:6379", "http://localhost", "valkey://localhost:port"):
        with pytest.raises(InputError, match="--store is no address"):
            Store(url, 60)


def test_the_masks_of_a_replica_that_is_killed_come_from_another(server: StoreServer) -> None:
    wanted = expected_areas(4)
    with serving("--workers", "2", "--store", server.url) as (url, front):
        ids = [embed(url, seed)["id"] for seed in range(4)]
        for victim in replicas(front)[:1]:
            victim.kill()
            victim.wait(30)
        for seed, name in enumerate(ids):
            answer = areas(url, name)
            assert answer.status_code == 200, answer.text
            assert [mask["area"] for mask in answer.json()["masks"]] == wanted[seed]
        content = httpx.post(f"{url}/embed", content=encoded(picture(0)), headers=PNG).json()
        assert content["cached"]
        data = np.frombuffer(httpx.get(f"{url}/v1/embed/{ids[0]}").content, "<f4")
        assert data.shape == (256 * 16 * 16,)

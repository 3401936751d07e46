"""The service on a real Ray Serve: its configuration, its routes, a replica that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from server_support import free_port, tiny_model
from test_server_replicas import areas, embed, expected_areas

from samtrt.errors import InputError

pytest.importorskip("ray.serve", reason="`make test` installs it")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "deploy" / "ray-serve.yaml"
PATIENCE = 150


def configuration(port: int) -> dict[str, Any]:
    """The one that is there, for the tiny model on two CPUs."""
    found: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text("utf-8"))
    found["http_options"]["port"] = port
    (application,) = found["applications"]
    application["args"].update(params=str(tiny_model()), backend="cpu")
    front, model = application["deployments"]
    front["ray_actor_options"] = {"num_cpus": 0}
    model["ray_actor_options"] = {"num_cpus": 1}
    model["autoscaling_config"].update(min_replicas=2, max_replicas=2)
    return found


@pytest.fixture(scope="module")
def server(
    only_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, psutil.Process]]:
    """`serve run` with the configuration; its URL and process."""
    folder = tmp_path_factory.mktemp("ray")
    port = free_port()
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(configuration(port)))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: ready(url), process, folder / "log")
        yield url, psutil.Process(process.pid)
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(below, 20)[1]:
            child.kill()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Any, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.5)


@pytest.mark.slow
def test_the_service_on_ray(server: tuple[str, psutil.Process]) -> None:
    url, process = server
    wanted = expected_areas(6)
    ids = [embed(url, seed)["id"] for seed in range(6)]
    for _ in range(2):  # each picture is where its requests go
        for seed, name in enumerate(ids):
            answer = areas(url, name)
            assert answer.status_code == 200, answer.text
            assert [mask["area"] for mask in answer.json()["masks"]] == wanted[seed]
    assert all(embed(url, seed)["cached"] for seed in range(6))
    assert areas(url, "0" * 64).status_code == 404
    assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 421
    assert "/v1/masks" in httpx.get(f"{url}/openapi.json").json()["paths"]
    metrics = httpx.get(f"{url}/metrics").text
    assert 'samtrt_requests_total{method="POST",replica="front",route="/masks"' in metrics
    body = {"id": ids[0], "points_per_side": 2}
    headers = {"Accept": "application/x-ndjson"}
    lines = httpx.post(f"{url}/v1/everything", json=body, headers=headers, timeout=60).text
    assert '"dataset"' in lines.splitlines()[-1]

    models = [
        child
        for child in process.children(recursive=True)
        if any("ServeReplica:samtrt:Model" in part for part in child.cmdline())
    ]
    assert len(models) == 2
    models[0].kill()
    deadline = time.monotonic() + PATIENCE
    right = 0
    while right < 12:  # nothing is wrong meanwhile, and nothing is lost
        assert time.monotonic() < deadline
        seed = right % 6
        answer = areas(url, ids[seed])
        if answer.status_code == 200:
            assert [mask["area"] for mask in answer.json()["masks"]] == wanted[seed]
            right += 1
        elif answer.status_code == 404:
            assert embed(url, seed)["id"] == ids[seed]
        else:
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            time.sleep(0.2)


def test_arguments_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from samtrt.server.replicas.ray_serve import application

    monkeypatch.delenv("SAMTRT_TOKEN", raising=False)
    for arguments, message in (
        ({}, "params is missing"),
        ({"params": "x", "port": 1}, "no port"),
        ({"params": "x", "limits": {"max_pixel": 1}}, "no max_pixel"),
        ({"params": "x", "host": "0.0.0.0", "allowed_hosts": ["*"]}, "no token"),
    ):
        with pytest.raises(InputError, match=message):
            application(arguments)

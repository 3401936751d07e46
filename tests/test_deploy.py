"""What is in deploy/ is what the package is: options that there are, files that there are, a proxy
that works. `.ci/try_image.py` runs the image's steps."""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from server_support import encoded, free_port, nginx, picture, running, tiny_model

from samtrt.cli.options import Options
from samtrt.cli.serve import add_options
from samtrt.sam import load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
TOKEN = "a-token-of-sixteen-letters-or-more"


def image() -> ModuleType:
    spec = importlib.util.spec_from_file_location("try_image", ROOT / ".ci" / "try_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(words: list[str]) -> argparse.Namespace:
    """The options of `samtrt serve`; one that there is not ends the test."""
    parser = argparse.ArgumentParser()
    add_options(Options(parser))
    return parser.parse_args(words)


def test_the_images_steps_are_of_files_that_there_are() -> None:
    program = image()
    stages = program.stages((DEPLOY / "Dockerfile").read_text("utf-8"))
    assert list(stages)[-1] == "cpu"  # what is built without --target
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    for name, (base, steps) in stages.items():
        assert base in stages or base.startswith("python:"), name
        for word, rest in steps:
            if word == "COPY" and "--from" in rest:
                found = re.fullmatch(r"--from=(\S+) (\S+) \2", rest)
                assert found and found[1] in stages and found[2] == program.INSTALLED
            elif word == "COPY":
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists() and source not in ignored
            elif word == "RUN":
                for lock in re.findall(r"-r (\S+)", rest):
                    assert (ROOT / lock).is_file()
            assert word != "ADD"
    for name in ("cpu", "cuda"):
        steps = program.steps(name)
        assert ("USER", "samtrt") in steps
        (entry,) = [json.loads(rest) for word, rest in steps if word == "ENTRYPOINT"]
        assert entry[:2] == ["samtrt", "serve"]
        assert parsed(entry[2:]).host == "0.0.0.0"
    for name in ignored:
        if not name.startswith(("**", ".")) and name not in ("build", "dist"):
            assert (ROOT / name).is_dir(), name
    # What a wheel is made of is not left out.
    assert not {"samtrt", "examples", "locks", "README.md", "LICENSE", "setup.py"} & set(ignored)


def test_compose() -> None:
    yaml = pytest.importorskip("yaml")
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    networks, services = services["networks"], services["services"]
    stages = image().stages((DEPLOY / "Dockerfile").read_text("utf-8"))
    server = services["samtrt"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert server["build"]["target"] in stages
    options = parsed(server["command"])
    assert options.store == "valkey://valkey:6379" and "valkey" in services
    (subnet,) = networks["inside"]["ipam"]["config"]
    assert options.trusted_proxy == [subnet["subnet"]]
    for service in services.values():
        assert set(service["networks"]) <= set(networks)
        assert set(service.get("depends_on", ())) <= set(services)
    configuration = services["nginx"]["volumes"][0].split(":")[0]
    text = (DEPLOY / configuration).read_text("utf-8")
    assert "server samtrt:8000;" in text and f"location {options.root_path}/ {{" in text


def test_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "samtrt.service").read_text("utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    program, command, *words = shlex.split(line)
    assert Path(program).name == "samtrt" and command == "serve"
    options = parsed(words)
    assert options.token_file == Path("%d/token") and "LoadCredential=token:" in text
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert int(seconds) > Settings().drain_seconds + 5
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "samtrt.service"
    unit.write_text(text.replace(program, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    unit.write_text(text.replace(program, sys.executable).replace("ProtectHome", "ProtectHouse"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert "ProtectHouse" in done.stderr  # which it would have told


@contextmanager
def proxy(folder: Path, server: str) -> Iterator[tuple[str, str]]:
    """nginx as deploy/ sets it up, before a server; its addresses without and with TLS."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail("openssl is not installed")
        pytest.skip("openssl is not installed")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-keyout", "server.key", "-out", "server.crt", *subject]
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
    )
    plain, secure = free_port(), free_port()
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    for old, new in (
        ("server samtrt:8000;", f"server {server.removeprefix('http://')};"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{secure} ssl;"),
        ("/etc/nginx/tls/", f"{folder}/"),
    ):
        assert old in text
        text = text.replace(old, new)
    with nginx(folder, secure, text):
        yield f"http://localhost:{plain}", f"https://localhost:{secure}"


def test_the_proxy(tmp_path: Path) -> None:
    settings = replace(Settings(), root_path="/sam", trusted_proxies=("127.0.0.1",), token=TOKEN)
    app = create_app(load_sam(tiny_model() / "engine", tiny_model()), settings=settings)
    with running(app) as server, proxy(tmp_path, server) as (plain, secure):
        moved = httpx.get(f"{plain}/sam/health?x=1")
        assert moved.status_code == 308
        assert moved.headers["location"] == "https://localhost/sam/health?x=1"
        trust = ssl.create_default_context(cafile=str(tmp_path / "server.crt"))
        headers = {"Authorization": f"Bearer {TOKEN}", "Origin": secure}
        with httpx.Client(base_url=f"{secure}/sam", verify=trust, headers=headers) as client:
            assert client.get("/ready", headers={"Authorization": ""}).status_code == 200
            assert client.get("/health", headers={"Authorization": ""}).status_code == 401
            png = {"Content-Type": "image/png"}
            answer = client.post("/v1/embed", content=encoded(picture(1)), headers=png, timeout=60)
            assert answer.status_code == 200, answer.text
            body = {"id": answer.json()["id"], "box": [20, 30, 120, 140]}
            assert len(client.post("/v1/masks", json=body).json()["masks"]) == 3
            large = client.post("/v1/embed", content=bytes(4 << 20), headers=png)
            assert large.status_code == 415  # the server's own word, not nginx's 413
            assert client.get("/openapi.json").json()["servers"] == [{"url": "/sam"}]
            evil = {"Origin": "https://evil.example"}
            assert client.post("/v1/masks", json=body, headers=evil).status_code == 403

"""A real server with a tiny seeded model, in a thread of the test process; processes beside it."""

import contextlib
import functools
import io
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from oracle import tiny_config
from PIL import Image

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.decoders.browser.contract import FILES
from samtrt.decoders.browser.export import export_browser_decoder
from samtrt.files import working_alone
from samtrt.server.guard.serving import Server

CONFIG = tiny_config(img_size=256)
SEED = 3


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="samtrt-tests-")


def build_model(folder: Path, seed: int) -> None:
    """A parameter folder with its engine."""
    parameters = random_parameters(CONFIG, seed)
    save_parameters(parameters, folder)
    options = BuildOptions("cpu", "fp32", skip_parity_gate=True)
    build_encoder(parameters, folder / "engine", [], options)


@functools.cache
def tiny_model() -> Path:
    """The parameter folder and engine that all tests of this process share; not to be changed."""
    folder = Path(_folder().name) / "tiny"
    build_model(folder, SEED)
    return folder


@functools.cache
def tiny_decoder() -> Path:
    """``tiny_model``'s mask decoder for the page; the first process of a run exports it for all."""
    path = Path(os.environ["SAMTRT_TESTS_SHARED"]) / "page"  # (conftest.py)
    with working_alone(path):
        if not (path / FILES[-1]).exists():  # written last
            export_browser_decoder(random_parameters(CONFIG, SEED), path)
    return path


def picture(seed: int, height: int = 150, width: int = 200) -> np.ndarray:
    """[height, width, 3] uint8: smooth colours, other ones for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def address_of(process: "subprocess.Popen[str]", said: list[str] | None = None) -> str:
    """The address that a server process says on its standard error, once it is ready.

    Args:
        said: takes the lines until then.
    """
    said = [] if said is None else said
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        for word in line.split():
            if word.startswith("http://"):
                return word
    pytest.fail(f"the server ended with status {process.wait()}: {''.join(said)}")


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def nginx(folder: Path, port: int, servers: str) -> Iterator[None]:
    """nginx with these servers, one of which listens on that port of the loopback."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("nginx is not installed; run tests/browser/install.sh")
        pytest.skip("nginx is not installed; run tests/browser/install.sh")
    paths = "\n".join(
        f"{name}_temp_path {folder};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = pwd.getpwuid(os.getuid()).pw_name  # not another one, where this is root
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off;\nuser {user};\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}\n{servers}\n}}\n"
    )
    process = subprocess.Popen([program, "-p", folder, "-c", file], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serves the application on a free port of the loopback; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()

"""A real server with a tiny seeded model, in a thread of the test process."""

import contextlib
import functools
import io
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from oracle import tiny_config
from PIL import Image

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.decoders.browser.export import export_browser_decoder
from samtrt.server.guard.serving import Server
from samtrt.server.launch import PAGE_DECODER

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
    """``tiny_model``'s mask decoder for the page, a folder in its own."""
    path = tiny_model() / PAGE_DECODER
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

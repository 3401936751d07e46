"""Models for workers of a Ray that the tests have started: some die, and where, on purpose."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from samtrt.errors import EngineError
from samtrt.sam import Sam, load_sam


def load(model: Path) -> Sam:
    """The model as it is."""
    return load_sam(model / "engine", model, "cpu")


def load_nothing(model: Path) -> Sam:
    """A model that cannot be loaded."""
    raise EngineError(f"no engine in {model}; build it")


def load_faulty(model: Path, flag: Path, once: int, always: int, broken: int) -> Sam:
    """A model with pictures that it cannot stand, known by their first pixel's red value.

    Args:
        flag: is made when ``once`` has killed its worker, which it does no second time.
        always: kills its worker each time.
        broken: fails as nobody foresaw.
    """

    def before(image: np.ndarray) -> None:
        red = int(image[0, 0, 0])
        if red == always or (red == once and not flag.exists()):
            if red == once:
                flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if red == broken:
            raise ZeroDivisionError("a bug")

    return _before_each(load(model), before)


def load_waiting_on(model: Path, flag: Path, node: Path) -> Sam:
    """A model whose worker, on the node whose id is in a file, takes a picture and stands still;
    those on others wait until it does."""

    def before(image: np.ndarray) -> None:
        if node.exists() and ray.get_runtime_context().get_node_id() == node.read_text():
            flag.touch()
            time.sleep(600)
        end = time.monotonic() + 600
        while not flag.exists() and time.monotonic() < end:
            time.sleep(0.05)

    return _before_each(load(model), before)


def _before_each(sam: Sam, before: Any) -> Sam:
    embed = sam.embed

    def first(image: np.ndarray, *arguments: Any) -> Any:
        before(image)
        return embed(image, *arguments)

    sam.embed = first  # type: ignore[method-assign]
    return sam

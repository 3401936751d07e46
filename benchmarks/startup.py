"""Seconds from a process's start to its first embedding, with an engine folder on disk."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.engine import EngineInfo, writing_engine
from samtrt.encoders.packed import write_packed
from samtrt.kernels.hopper.code_cache import CACHE_VARIABLE

FIRST_EMBEDDING = """
import sys
import torch
from samtrt.encoders.load import load_encoder
encoder = load_encoder(sys.argv[1])
out = encoder(torch.zeros(1, 3, encoder.img_size, encoder.img_size, device=encoder.device))
assert out.isfinite().all().item()
"""


def start_up(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], precision: str
) -> dict[str, float]:
    """Once with empty kernel caches (cold), and the better of two starts with full ones (warm)."""
    info = EngineInfo("cuda", config, precision, 1, parameters_sha256="0" * 64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with writing_engine(folder) as engine:
            write_packed(engine.file, tensors, info)
            engine.info = info
        environ = cache_variables(folder)
        command = [sys.executable, "-c", FIRST_EMBEDDING, str(folder)]
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            root = Path(__file__).resolve().parent.parent
            subprocess.run(command, env={**os.environ, **environ}, check=True, cwd=root)
            seconds.append(time.perf_counter() - start)
        if not list(folder.rglob("*.cubin")):
            raise RuntimeError("no kernel was compiled into the caches given: the start was warm")
    return {"startup_cold_s": seconds[0], "startup_warm_s": min(seconds[1:])}


def cache_variables(folder: Path) -> dict[str, str]:
    """Every cache of machine code that a start may read, in an own empty folder."""
    names = ("TRITON_CACHE_DIR", CACHE_VARIABLE, "CUDA_CACHE_PATH")
    return {name: str(folder / name.lower()) for name in names}

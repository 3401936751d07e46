"""Seconds from a process's start to its first embedding, with packed parameters on disk."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.packed import write_packed
from samtrt.kernels.hopper.code_cache import CACHE_VARIABLE

FIRST_EMBEDDING = """
import json
import sys
import torch
from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.encoder import FusedImageEncoder
from samtrt.encoders.packed import read_packed
config = EncoderConfig.from_json(json.loads(sys.argv[2]))
encoder = FusedImageEncoder(config, read_packed(sys.argv[1]), sys.argv[3])
out = encoder(torch.zeros(1, 3, config.img_size, config.img_size, device="cuda"))
assert out.isfinite().all().item()
"""


def start_up(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], precision: str
) -> dict[str, float]:
    """Once with empty kernel caches (cold), and the better of two starts with full ones (warm)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = folder / "encoder.engine"
        write_packed(packed, tensors, precision)
        environ = cache_variables(folder)
        sizes = json.dumps(config.to_json())
        command = [sys.executable, "-c", FIRST_EMBEDDING, str(packed), sizes, precision]
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

"""Seconds from a process's start to its first embedding, with an engine folder on disk."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda.quantisation import Fp8Plan
from samtrt.encoders.engine import EngineInfo, Fp8Record, writing_engine
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
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    precision: str,
    plan: Fp8Plan | None = None,
) -> dict[str, float]:
    """Once with empty kernel caches (cold), and the better of two starts with full ones (warm)."""
    info, extra = EngineInfo("cuda", config, "fp16", 1, parameters_sha256="0" * 64), None
    if plan is None:
        info = replace(info, precision=precision)
    else:
        record = Fp8Record(len(plan.linears), (), False, "0" * 64)
        info = replace(info, precision=precision, compute_capability="9.0", fp8=record)
        tensors, extra = plan.not_packed(tensors), plan.to_tensors()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with writing_engine(folder) as engine:
            write_packed(engine.file, tensors, info, extra)
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

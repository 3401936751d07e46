"""Which backend runs on this machine, and what keeps the cuda backend from it."""

import importlib.util
import logging

import torch

from samtrt.encoders.tensorrt.library import import_tensorrt
from samtrt.errors import EngineError
from samtrt.hints import install

MIN_CUDA_CAPABILITY = 8.0
CUDA_PRECISIONS = ("fp16", "bf16", "fp8")  # fp8 on 9.0 only
logger = logging.getLogger(__name__)


def why_not_cuda(device: torch.device | None = None) -> str | None:
    """What the cuda backend lacks on a GPU, in a few words; None where it runs.

    Args:
        device: the GPU; None for torch's current one.
    """
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < MIN_CUDA_CAPABILITY:
        return f"the GPU has compute capability {major}.{minor}, and it needs 8.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (`{install('gpu')}`)"
    if major == 9:
        from samtrt.kernels.hopper.compiler import require_compiler

        try:
            require_compiler()
        except EngineError as error:
            return str(error)
    return None


def fastest_backend(builds: bool = False) -> str:
    """What ``auto`` means on this machine; a GPU that it leaves unused is logged, with the reason.

    Args:
        builds: whether an engine can be built first, as TensorRT needs it.
    """
    if not torch.cuda.is_available():
        return "cpu"
    lacking = why_not_cuda()
    if lacking is None:
        return "cuda"
    if builds:
        try:
            import_tensorrt()
        except EngineError as error:
            lacking = f"{lacking}; {error}"
        else:
            logger.info("not the cuda backend: %s", lacking)
            return "tensorrt"
    logger.warning("the CPU is used and not the GPU: %s", lacking)
    return "cpu"


def default_device(backend: str = "auto") -> torch.device:
    """Where an encoder made from parameters runs when nobody says."""
    if backend == "auto":
        backend = fastest_backend()
    return torch.device("cpu" if backend == "cpu" else "cuda")

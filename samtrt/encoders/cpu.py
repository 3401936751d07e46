"""The CPU runtime: the model's definition on torch, in bf16 where the CPU is fast at it."""

import ctypes
import logging
import platform
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.packed import DTYPES
from samtrt.encoders.protocol import check_pictures
from samtrt.errors import EngineError
from samtrt.modeling.bound import bound_encoder
from samtrt.torch_state import as_written

logger = logging.getLogger(__name__)

CPU_PRECISIONS = ("bf16", "fp32")
# Instruction sets that multiply bf16 matrices faster than fp32 ones: x86, then ARM.
_FAST_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 1 << 30


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones."""
    if hasattr(torch.cpu, "get_capabilities"):  # newer than torch 2.6
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _FAST_BF16)
    return bool(torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next allocation.

    By default it gives large blocks back to the system at once, and every activation of the
    encoder is one: 86,000 page faults a picture with ViT-B. The process keeps its peak memory
    instead. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        libc.mallopt(option, _KEPT_BYTES)


class CpuImageEncoder:
    """SAM's image encoder on the CPU; an ``ImageEncoder``.

    Making one calls ``keep_freed_memory``, which concerns the whole process.

    Pictures of a batch run one after the other: one picture fills all cores, and the memory
    stays that of one.

    Args:
        config: the encoder's sizes.
        tensors: the encoder's parameters, names without ``image_encoder.``.
        precision: ``bf16`` or ``fp32``. On a CPU without fast bf16 a ``bf16`` encoder keeps its
            rounded weights and computes in fp32, which is faster there, and logs it.
        max_batch_size: the largest batch it takes; None for any.

    Raises:
        EngineError: another precision.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tensors: Mapping[str, np.ndarray] | Mapping[str, Tensor],
        precision: str = "bf16",
        max_batch_size: int | None = 1,
    ) -> None:
        if precision not in CPU_PRECISIONS:
            raise EngineError(
                f"the cpu backend computes in {' or '.join(CPU_PRECISIONS)}, not in {precision}"
            )
        if precision == "bf16" and not has_fast_bf16():
            logger.warning("this CPU has no fast bf16: the bf16 weights are computed with in fp32")
            precision = "fp32"
        keep_freed_memory()
        self.img_size = config.img_size
        self.device = torch.device("cpu")
        self.precision = precision
        self.computed_by = f"cpu {precision} torch {torch.__version__}"
        self._max_batch_size = max_batch_size
        self._output_shape = config.output_shape
        with as_written():
            self._model = bound_encoder(config, tensors, DTYPES[precision])

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        check_pictures(x, self.img_size, self.device, self._max_batch_size)
        with as_written():
            output = torch.empty(
                len(x), *self._output_shape, dtype=torch.float32, device=self.device
            )
            with torch.inference_mode():
                for picture, embedding in zip(x.split(1), output.split(1), strict=True):
                    embedding.copy_(self._model(picture))
        return output

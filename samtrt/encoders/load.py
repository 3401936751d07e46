"""From an engine folder, or from parameters, to an image encoder that runs."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.meta import read_parameters
from samtrt.checkpoints.parameters import Parameters
from samtrt.encoders import BACKENDS
from samtrt.encoders.choice import default_device
from samtrt.encoders.engine import (
    SIDECAR_FILE,
    EngineInfo,
    read_engine,
    read_engine_info,
)
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError
from samtrt.hints import command
from samtrt.kernels.device import resolved

logger = logging.getLogger(__name__)


def load_encoder(
    engine_dir: str | Path,
    backend: str = "auto",
    device: torch.device | str | None = None,
    parameters_sha256: str | None = None,
) -> ImageEncoder:
    """Loads the image encoder of an engine folder.

    Args:
        engine_dir: folder with ``encoder.engine`` and ``encoder.json``.
        backend: ``tensorrt``, ``cuda`` or ``cpu``, refused when the engine is for another one;
            ``auto`` takes the engine's own and logs it.
        device: where to run; None for the backend's default.
        parameters_sha256: the parameter set that the caller works with; None where any will do.

    Raises:
        EngineError: no engine there, or it does not belong to this machine, library version,
            parameter set or backend, or was altered.
    """
    engine_dir = Path(engine_dir)
    info = read_engine_info(engine_dir)
    if backend not in ("auto", *BACKENDS):
        raise EngineError(f"unknown backend {backend}; expected auto, {', '.join(BACKENDS)}")
    if backend not in ("auto", info.backend):
        raise EngineError(
            f"the engine in {engine_dir} is for the {info.backend} backend and {backend} was asked "
            f"for; build one with --backend {backend}"
        )
    target = torch.device(device) if device is not None else None
    info, content = read_engine(engine_dir, parameters_sha256, target)
    logger.info("image encoder: %s backend, %s, from %s", info.backend, info.precision, engine_dir)
    return open_encoder(content, info, target)


def open_encoder(
    content: bytearray, info: EngineInfo, device: torch.device | None = None
) -> ImageEncoder:
    """The encoder of an engine file's content that was checked before (``read_engine``).

    Raises:
        EngineError: the device is not one of the engine's backend, or the backend refuses.
    """
    device = _device(info.backend, device)
    if info.backend == "tensorrt":
        from samtrt.encoders.tensorrt.runtime import TensorRTImageEncoder

        return TensorRTImageEncoder(content, info, device)
    from samtrt.encoders.packed import read_packed

    tensors = read_packed(content, info)
    if info.fp8 is not None:
        return _fp8_encoder(tensors, info, device)
    return _packed_encoder(
        info.backend, info.config, tensors, info.precision, device, info.max_batch_size
    )


def load_image_encoder(
    path: str | Path,
    backend: str = "auto",
    device: torch.device | str | None = None,
    precision: str = "auto",
) -> ImageEncoder:
    """The image encoder of an engine folder, a parameter folder or a checkpoint.

    What it makes of a picture is ``EncoderConfig.output_shape``: SAM's embedding [256, h, w], with
    the output of some blocks as further channels (SAM-HQ, CellViT-SAM;
    ``modeling.heads.split_taps`` takes them apart), DeepEncoder's [1024, h/4, w/4], or
    Cellpose-SAM's [3, S, S].

    Args:
        path: as ``load_sam`` takes it, and models of SAM's family without its mask decoder.
        backend, device: see ``load_encoder`` and ``encoder_from_parameters``.
        precision: see ``encoder_from_parameters``; an engine has its own.

    Raises:
        CheckpointError: parameters that are missing, damaged or no image encoder's.
        EngineError: an engine or back end that cannot be used here.
    """
    path = Path(path)
    if (path / SIDECAR_FILE).is_file():
        return load_encoder(path, backend, device)
    return encoder_from_parameters(read_parameters(path), backend, device, precision)


def encoder_from_parameters(
    parameters: Parameters,
    backend: str = "auto",
    device: torch.device | str | None = None,
    precision: str = "auto",
    max_batch_size: int = 1,
) -> ImageEncoder:
    """An image encoder straight from parameters, without an engine folder.

    Args:
        backend: ``cuda`` or ``cpu``; ``auto`` goes by the device, or takes the GPU where there
            is one that the cuda backend runs on. A TensorRT engine has to be built first.
        precision: ``fp16``, ``bf16`` or ``fp32``; ``auto`` is fp16 on a GPU, and on a CPU bf16
            where that is fast and fp32 elsewhere. (``fp8`` runs from an engine: it is calibrated
            and checked when that is built.)
        max_batch_size: how many pictures run at once on a GPU. A call may have more, which then
            take turns.

    Raises:
        EngineError: the backend needs an engine or another device, or refuses the precision.
    """
    return encoder_from_tensors(
        parameters.encoder_config, parameters.encoder(), backend, device, precision, max_batch_size
    )


def encoder_from_tensors(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray] | Mapping[str, Tensor],
    backend: str = "auto",
    device: torch.device | str | None = None,
    precision: str = "auto",
    max_batch_size: int = 1,
) -> ImageEncoder:
    """``encoder_from_parameters`` of the encoder's tensors, by Meta's names without
    ``image_encoder.``."""
    target = torch.device(device) if device is not None else default_device(backend)
    if backend == "auto":
        backend = "cpu" if target.type == "cpu" else "cuda"
    if backend not in ("cuda", "cpu"):
        raise EngineError(
            f"the {backend} backend runs engines only; build one, or take cuda or cpu"
        )
    if precision == "fp8" and backend == "cuda":
        raise EngineError(
            "fp8 runs from an engine: its scales come from pictures, and its masks are compared "
            f"with fp32's, when that is built; build one with `{command('build')} --backend cuda "
            "--precision fp8` and load its folder"
        )
    target = _device(backend, target)
    precision = default_precision(backend) if precision == "auto" else precision
    logger.info("image encoder: %s backend, %s, from parameters", backend, precision)
    return _packed_encoder(
        backend,
        config,
        tensors,
        precision,
        target,
        max_batch_size,
        any_batch_size=True,
    )


def default_precision(backend: str) -> str:
    """What ``--precision auto`` means: fp16 on GPUs; on CPUs bf16 where that is fast, else fp32."""
    if backend != "cpu":
        return "fp16"
    from samtrt.encoders.cpu import has_fast_bf16

    return "bf16" if has_fast_bf16() else "fp32"


def _device(backend: str, device: torch.device | None) -> torch.device:
    kind = "cpu" if backend == "cpu" else "cuda"
    device = device or torch.device(kind)
    if device.type != kind:
        raise EngineError(f"the {backend} backend runs on {kind}, not on {device}")
    return resolved(device)


def _fp8_encoder(
    tensors: dict[str, Tensor], info: EngineInfo, device: torch.device
) -> ImageEncoder:
    from samtrt.encoders.cuda import FusedImageEncoder
    from samtrt.encoders.cuda.quantisation import Fp8Plan, all_linears, parse_linears

    assert info.fp8 is not None
    linears = all_linears(info.config) - parse_linears(info.fp8.fp16_linears, info.config)
    try:
        plan = Fp8Plan.from_tensors(tensors, linears)
    except KeyError as error:
        raise EngineError(
            f"the engine's packed parameters are damaged ({error} is missing); build it again"
        ) from None
    return FusedImageEncoder(info.config, tensors, "fp8", device, info.max_batch_size, fp8=plan)


def _packed_encoder(
    backend: str,
    config: EncoderConfig,
    tensors: Mapping[str, Any],
    precision: str,
    device: torch.device,
    max_batch_size: int,
    any_batch_size: bool = False,
) -> ImageEncoder:
    # Imported when asked for: the cuda runtime needs triton.
    if backend == "cpu":
        from samtrt.encoders.cpu import CpuImageEncoder

        return CpuImageEncoder(
            config, tensors, precision, None if any_batch_size else max_batch_size
        )
    from samtrt.encoders.cuda import FusedImageEncoder

    return FusedImageEncoder(config, tensors, precision, device, max_batch_size, any_batch_size)

"""From parameters to a checked engine folder, for every back end."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from samtrt.building.accuracy import PictureSource, load_picture, load_pictures
from samtrt.building.gate_pictures import calibration_pictures, drawn_pictures
from samtrt.building.parity import LIMITS, check_parity
from samtrt.checkpoints.parameters import Parameters
from samtrt.encoders import LIBRARY_PLUGINS
from samtrt.encoders.choice import CUDA_PRECISIONS, fastest_backend, why_not_cuda
from samtrt.encoders.cpu import CPU_PRECISIONS
from samtrt.encoders.engine import (
    FAILED,
    MAX_BATCH_SIZE,
    NOT_CHECKED,
    SKIPPED,
    EngineInfo,
    ParityResult,
    can_execute,
    compute_capability,
    writing_engine,
)
from samtrt.encoders.load import default_precision, open_encoder
from samtrt.encoders.packed import write_packed
from samtrt.encoders.tensorrt.standalone import AOT_PLUGINS_NEED, PLUGINS_NEED
from samtrt.errors import EngineError
from samtrt.files import read_whole, writing
from samtrt.modeling.image_encoder import AttentionKind

BACKEND_PRECISIONS = {
    "tensorrt": ("fp16", "bf16", "fp32"), "cuda": CUDA_PRECISIONS, "cpu": CPU_PRECISIONS
}  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        backend: ``tensorrt``, ``cuda``, ``cpu``; ``auto`` is the fastest that runs here.
        precision: ``fp16``, ``bf16``, ``fp32``, ``fp8`` (cuda, on compute capability 9.0);
            ``auto`` is fp16 on GPUs, and on CPUs bf16 where that is fast and passes the parity
            gate, else fp32.
        max_batch_size: the engine takes 1…max_batch_size pictures.
        attention: ``fused`` or ``plain`` attention in a TensorRT network.
        plugins: one of ``PLUGINS``: what is our kernels in a TensorRT engine.
        compute_capability: of the GPU to build for, as "8.9"; None for this machine's.
        skip_parity_gate: do not compare the engine with fp32; recorded in the sidecar.
        calibrate: pictures that an fp8 engine's scales come from, as ``build_encoder`` takes them;
            without any it draws four.
        fp8_keep: linear layers of an fp8 engine that stay in fp16: blocks and linears with commas
            between them, as "7,15.mlp.lin2"; "none"; "auto" for those that have to.
    """

    backend: str = "auto"
    precision: str = "auto"
    max_batch_size: int = 1
    attention: AttentionKind = "fused"
    plugins: str = "none"
    compute_capability: str | None = None
    skip_parity_gate: bool = False
    calibrate: Sequence[PictureSource] = ()
    fp8_keep: str = "auto"


def build_encoder(
    parameters: Parameters,
    output_dir: str | Path,
    pictures: Sequence[PictureSource] = (),
    options: BuildOptions = BuildOptions(),
) -> EngineInfo:
    """Builds the engine, passes it through the parity gate, and writes the engine folder.

    A failed build or a failed gate leaves the folder as it was. What ``auto`` chose is logged.

    Args:
        pictures: files, or arrays [H, W, 3] uint8 RGB, that the parity gate compares on; without
            any it draws two.

    Returns:
        The sidecar that was written.

    Raises:
        InputError: a picture cannot be read; before anything is built.
        EngineError: the combination cannot be built, or the gate failed.
        SamtrtError: the folder cannot be written.
    """
    backend = options.backend
    if backend == "auto":
        # Only TensorRT compiles for a GPU, has attention of two kinds, or plugins.
        wants_tensorrt = (
            options.compute_capability or options.attention != "fused" or options.plugins != "none"
        )
        backend = "tensorrt" if wants_tensorrt else fastest_backend(builds=True)
    precision = options.precision
    if precision == "auto":
        precision = default_precision(backend)
    if "auto" in (options.backend, options.precision):
        logger.info("chosen: %s backend, %s", backend, precision)
    chosen = replace(options, backend=backend, precision=precision)
    if not options.skip_parity_gate:
        pictures = pictures or drawn_pictures()
        for picture in pictures:
            load_picture(picture, parameters.encoder_config.img_size)
    try:
        return _build(parameters, Path(output_dir), pictures, chosen)
    except ParityError as error:
        if options.precision != "auto" or (backend, precision) != ("cpu", "bf16"):
            raise
        logger.warning("bf16 does not hold parity (%s): building in fp32", error.result)
    return _build(parameters, Path(output_dir), pictures, replace(chosen, precision="fp32"))


class ParityError(EngineError):
    """An engine whose output is too far from fp32."""

    def __init__(self, result: ParityResult, info: EngineInfo) -> None:
        self.result = result
        precision = info.precision
        limits = LIMITS[precision]
        other = "another --precision"
        if info.plugins != "none":  # they have one precision
            other = "--backend cuda or --plugins none"
        super().__init__(
            f"the engine did not pass the parity gate and was not written ({result}; allowed in "
            f"{precision}: {limits.relative_l2:.2g}, mean IoU ≥ {limits.mean_mask_iou}, worst ≥ "
            f"{limits.worst_mask_iou}); build with {other}, or keep it unchecked with "
            "--skip-parity-gate"
        )


def _refuse_impossible(options: BuildOptions) -> None:
    backend, precision = options.backend, options.precision
    precisions = BACKEND_PRECISIONS[backend]
    if precision not in precisions:
        raise EngineError(
            f"the {backend} backend computes in {' or '.join(precisions)}, not in {precision}"
        )
    if not 1 <= options.max_batch_size <= MAX_BATCH_SIZE:
        raise EngineError(
            f"the largest batch must be at most {MAX_BATCH_SIZE} and at least 1, "
            f"not {options.max_batch_size}"
        )
    if backend != "tensorrt" and (
        options.compute_capability or options.attention != "fused" or options.plugins != "none"
    ):
        raise EngineError(
            "--compute-capability, --attention plain and --plugins are for --backend tensorrt; "
            f"the {backend} backend has no compiled engine"
        )
    if precision != "fp8" and (options.calibrate or options.fp8_keep != "auto"):
        raise EngineError(
            f"--calibrate and --fp8-keep are for --precision fp8; {precision} has no scales"
        )
    if options.plugins in LIBRARY_PLUGINS and compute_capability() != PLUGINS_NEED:
        found = compute_capability()
        raise EngineError(
            f"the plugins' machine code is for compute capability {PLUGINS_NEED}, and "
            f"{f'this GPU has {found}' if found else 'torch finds no GPU here'}; leave --plugins "
            "out, or write the network with --write-network"
        )
    _refuse_old_gpu(options)


def _refuse_old_gpu(options: BuildOptions) -> None:
    found = compute_capability()
    if options.plugins == "attention-aot" and found and float(found) < float(AOT_PLUGINS_NEED):
        raise EngineError(
            f"the plugins' PTX is for compute capability {AOT_PLUGINS_NEED} and newer, and this "
            f"GPU has {found}; leave --plugins out"
        )


def _build(
    parameters: Parameters,
    output_dir: Path,
    pictures: Sequence[PictureSource],
    options: BuildOptions,
) -> EngineInfo:
    _refuse_impossible(options)
    if options.precision == "fp8":
        return _build_fp8(parameters, output_dir, pictures, options)
    with writing_engine(output_dir) as engine:
        start = time.perf_counter()
        if options.backend == "tensorrt":
            info = _write_tensorrt(engine.file, parameters, options)
        else:
            info = _info(parameters, options)
            write_packed(engine.file, parameters.encoder(), info)
        info = replace(info, build_seconds=round(time.perf_counter() - start, 3))
        parity = _gate(engine.file, info, parameters, pictures, options)
        engine.info = replace(info, parity=parity)
    return engine.info


def _build_fp8(
    parameters: Parameters,
    output_dir: Path,
    pictures: Sequence[PictureSource],
    options: BuildOptions,
) -> EngineInfo:
    """Tries with ever more linear layers in fp16, until the gate is passed."""
    device = require_fp8(parameters)
    from samtrt.building.fp8 import calibrations, kept_linears

    keep = kept_linears(options.fp8_keep, parameters)
    sources = options.calibrate or calibration_pictures()
    calibrate = load_pictures(sources, parameters.encoder_config.img_size)
    judged = load_pictures(pictures or drawn_pictures(), parameters.encoder_config.img_size)
    start = time.perf_counter()
    failed: ParityError | None = None
    with writing_engine(output_dir) as engine:
        for calibrated in calibrations(parameters, calibrate, judged, keep, LIMITS["fp8"], device):
            plan, record = calibrated.plan, calibrated.record
            info = _info(parameters, options, compute_capability="9.0", fp8=record)
            write_packed(
                engine.file, plan.not_packed(parameters.encoder()), info, plan.to_tensors()
            )
            info = replace(info, build_seconds=round(time.perf_counter() - start, 3))
            try:
                parity = _gate(engine.file, info, parameters, pictures, options)
            except ParityError as error:
                logger.info("fp8: %s", error.result)
                failed = error
                continue
            engine.info = replace(info, parity=parity)
            break
        else:
            assert failed is not None
            raise failed
    return engine.info


def require_fp8(parameters: Parameters) -> torch.device:
    """The device that an FP8 engine is calibrated, checked and run on.

    Raises:
        EngineError: this machine has none, or the encoder has sizes that no FP8 kernel knows.
    """
    lacking = why_not_cuda()
    if lacking is not None:
        raise EngineError(
            "an fp8 engine is built on the GPU that it runs on, an H100 or H200, and here "
            f"{lacking}; build it there, or take --precision fp16"
        )
    from samtrt.encoders.cuda.encoder import check_fp8

    device = torch.device("cuda", torch.cuda.current_device())
    check_fp8(parameters.encoder_config, device)
    return device


def _info(parameters: Parameters, options: BuildOptions, **made: object) -> EngineInfo:
    return EngineInfo(
        options.backend,
        parameters.encoder_config,
        options.precision,
        options.max_batch_size,
        parameters.sha256,
        note=parameters.note,
        **made,  # type: ignore[arg-type]
    )


def _write_tensorrt(engine_file: Path, parameters: Parameters, options: BuildOptions) -> EngineInfo:
    from samtrt.encoders.tensorrt.builder import build_engine
    from samtrt.encoders.tensorrt.library import import_tensorrt
    from samtrt.encoders.tensorrt.plugin_library import sources_sha256

    trt = import_tensorrt()
    engine = build_engine(
        parameters.encoder_config,
        parameters.encoder(),
        precision=options.precision,
        max_batch_size=options.max_batch_size,
        attention=options.attention,
        plugins=options.plugins,
        compute_capability=options.compute_capability,
    )
    with writing(engine_file):
        engine_file.write_bytes(engine)
    # TensorRT builds for the GPU it finds; TensorRT-RTX for all, unless it was told which.
    here = compute_capability() if trt.__name__ == "tensorrt" else None
    return _info(
        parameters,
        options,
        library=trt.__name__,
        library_version=trt.__version__,
        compute_capability=options.compute_capability or here,
        attention=options.attention,
        plugins=options.plugins,
        plugins_sha256=sources_sha256() if options.plugins in LIBRARY_PLUGINS else None,
    )


def _gate(
    engine_file: Path,
    info: EngineInfo,
    parameters: Parameters,
    pictures: Sequence[PictureSource],
    options: BuildOptions,
) -> ParityResult:
    if options.skip_parity_gate:
        return ParityResult(SKIPPED)
    if not can_execute(info):
        return ParityResult(NOT_CHECKED)
    try:
        encoder = open_encoder(read_whole(engine_file), info)
    except EngineError as error:
        if info.backend != "tensorrt":
            raise
        # An engine may be built on one machine for another whose GPU TensorRT does support.
        logger.warning("%s: %s", NOT_CHECKED, error)
        return ParityResult(NOT_CHECKED)
    result = check_parity(encoder, parameters, pictures, info.precision, info.max_batch_size)
    if result.status == FAILED:
        raise ParityError(result, info)
    return result

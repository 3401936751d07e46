"""Builds TensorRT engines of the image encoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders import LIBRARY_PLUGINS
from samtrt.encoders.tensorrt import ops, standalone
from samtrt.encoders.tensorrt.library import import_tensorrt, shared_log
from samtrt.encoders.tensorrt.plugin_library import load_library
from samtrt.encoders.tensorrt.progress import make_progress_monitor
from samtrt.encoders.tensorrt.recording import Recording, type_name
from samtrt.errors import EngineError
from samtrt.modeling.bound import bound_encoder
from samtrt.modeling.image_encoder import AttentionKind
from samtrt.modeling.network import net_guard

INPUT, OUTPUT = "image", "embedding"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def record_network(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    precision: str,
    attention: AttentionKind = "fused",
    plugins: str = "none",
    max_batch_size: int = 1,
) -> Recording:
    """The image encoder as layers of no TensorRT version yet.

    Input "image" [B, 3, S, S] and output "embedding" [B, *config.output_shape] are float32; B
    is dynamic.

    Args:
        tensors: the encoder's parameters (``Parameters.encoder()``); their memory is not copied
            where their type is that of the network.
        precision: fp32, fp16 or bf16: the type of the weights and of the residual stream.
        attention: "fused" or "plain" (see ``bound_encoder``).
        plugins: one of ``PLUGINS``: what is our kernels.
        max_batch_size: with a library's plugins the network is for 1…max_batch_size pictures.

    Raises:
        CheckpointError: the parameters do not fit the configuration.
        EngineError: there are no plugins of these sizes or this precision.
    """
    model = bound_encoder(config, tensors, DTYPES[precision], attention)
    if plugins == "attention-aot":
        from samtrt.encoders.tensorrt.aot_network import use_aot_plugins

        use_aot_plugins(model, config, tensors)
    elif plugins != "none":
        from samtrt.encoders.tensorrt.plugin_network import use_plugins

        use_plugins(model, config, tensors, plugins, max_batch_size)
    recording = Recording(ops)
    size = config.img_size
    image = recording.add_input(INPUT, (-1, 3, size, size), torch.float32)
    with net_guard(recording, model):
        recording.outputs[OUTPUT] = model(image)
    return recording


def raw_weights(recording: Recording) -> dict[str, standalone.Weights]:
    """The recorded weights' memory, as TensorRT and safetensors files take it."""
    weights = {}
    for name, tensor in recording.weights.items():
        tensor = tensor.detach().cpu().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).numpy()
        weights[name] = standalone.Weights(type_name(tensor.dtype), tuple(tensor.shape), content)
    return weights


def define_network(
    trt: Any,
    builder: Any,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    precision: str,
    attention: AttentionKind = "fused",
) -> standalone.Network:
    """The image encoder as a TensorRT network; the arguments are ``record_network``'s.

    Args:
        builder: a ``trt.Builder``.

    Raises:
        CheckpointError: the parameters do not fit the configuration.
        EngineError: the installed version does not take the network.
    """
    return add_recording(trt, builder, record_network(config, tensors, precision, attention))


def add_recording(trt: Any, builder: Any, recording: Recording) -> standalone.Network:
    """A recorded network as layers of the installed TensorRT.

    Raises:
        EngineError: it does not take them.
    """
    try:
        return standalone.add_network(trt, builder, recording.description(), raw_weights(recording))
    except standalone.NetworkError as error:
        log = shared_log(trt)
        reason = f": {log.first_error()}" if log.errors else ""
        raise EngineError(f"{error}{reason}") from error


def build_engine(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    precision: str = "fp16",
    max_batch_size: int = 1,
    attention: AttentionKind = "fused",
    plugins: str = "none",
    compute_capability: str | None = None,
    progress: bool = True,
) -> bytes:
    """A serialised TensorRT engine of the image encoder.

    TensorRT-RTX builds without a GPU; TensorRT builds for the GPU it finds.

    Args:
        tensors: the encoder's parameters (``Parameters.encoder()``); their memory is not copied
            where their type is that of the engine.
        precision: fp32 (without TF32), fp16 or bf16.
        max_batch_size: the engine takes 1…max_batch_size pictures and is optimised for that many.
        attention: "fused" takes TensorRT's attention layer, "plain" spells attention out.
        plugins: one of ``PLUGINS``: what is our kernels; their library is loaded if they have one.
        compute_capability: TensorRT-RTX only: the GPU to build for, as "8.9"; by default the
            engine runs on every GPU from compute capability 8.0 on that TensorRT-RTX supports.
        progress: whether to show a progress bar on stderr.

    Raises:
        EngineError: TensorRT is not installed, cannot start here, or refuses the network.
        CheckpointError: the parameters do not fit the configuration.
    """
    if precision not in DTYPES:
        raise EngineError(f"unknown precision {precision}; expected one of {', '.join(DTYPES)}")
    if attention not in ("fused", "plain"):
        raise EngineError(f"unknown attention {attention}; expected fused or plain")
    if max_batch_size < 1:
        raise EngineError(f"the largest batch is {max_batch_size}; expected 1 or more")
    trt = import_tensorrt()
    log = shared_log(trt)
    log.errors.clear()
    if plugins in LIBRARY_PLUGINS:
        load_library(trt)
    elif plugins != "none":
        _require_aot_plugins(trt)
    builder = _make_builder(trt, log)
    recording = record_network(config, tensors, precision, attention, plugins, max_batch_size)
    builder_config = standalone.configure(
        trt, builder, recording.description(), precision, max_batch_size
    )
    if compute_capability is not None:
        _set_compute_capability(trt, builder_config, compute_capability)
    monitor = make_progress_monitor(trt, progress)
    if hasattr(trt, "IProgressMonitor"):
        builder_config.progress_monitor = monitor
    else:
        monitor.phase_start("Building engine, of which this version tells no progress", None, 1)
    network = add_recording(trt, builder, recording)
    try:
        engine = builder.build_serialized_network(network.definition, builder_config)
    finally:
        monitor.close()
    if engine is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} could not build the engine: {log.first_error()}; "
            "try --attention plain or another --precision"
        )
    return bytes(engine)


def _require_aot_plugins(trt: Any) -> None:
    try:
        standalone.aot_plugins(trt)
    except standalone.NetworkError as error:
        raise EngineError(str(error)) from error


def _make_builder(trt: Any, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # the binding's way to say that there is none
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot start here: {log.first_error()}; it needs a "
            "GPU and driver that it supports; tensorrt-rtx-cu13 builds without a GPU"
        ) from error


def _set_compute_capability(trt: Any, builder_config: Any, wanted: str) -> None:
    if not hasattr(builder_config, "set_compute_capability"):
        raise EngineError(
            f"{trt.__name__} builds for the GPU of this machine and takes no compute capability; "
            "leave --compute-capability out, or install tensorrt-rtx-cu13 alone"
        )
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if wanted not in known:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot build for compute capability {wanted}; "
            f"expected one of {', '.join(known)}; for other GPUs from 8.0 on `--backend cuda` "
            "builds anywhere, without --compute-capability"
        )
    builder_config.num_compute_capabilities = 1
    builder_config.set_compute_capability(known[wanted], 0)

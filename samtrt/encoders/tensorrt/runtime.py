"""Runs a TensorRT engine of the image encoder on torch's memory and streams."""

import os
import threading
from typing import Any

import torch

from samtrt.encoders import LIBRARY_PLUGINS
from samtrt.encoders.engine import EngineInfo
from samtrt.encoders.protocol import (
    NotCopied,
    check_pictures,
    check_process,
    wait_when_deleted,
)
from samtrt.encoders.tensorrt.builder import INPUT, OUTPUT
from samtrt.encoders.tensorrt.library import import_tensorrt, shared_log
from samtrt.encoders.tensorrt.plugin_library import load_library
from samtrt.errors import EngineError
from samtrt.kernels.device import resolved
from samtrt.torch_state import as_written


class TensorRTImageEncoder(NotCopied):
    """``ImageEncoder`` on a TensorRT engine.

    No test runs an engine, which takes a GPU; TensorRT 8.6.0 has executed engines with plugins on
    an H200 (``docs/tensorrt.md``). On the user's hardware the parity gate of ``build_encoder``
    compares the output with fp32.

    Calls from several threads and streams run one after another: there is one execution context,
    with a stream of its own.

    Args:
        engine: the serialised engine.
        info: its sidecar.
        device: the GPU to run on.

    Raises:
        EngineError: TensorRT is not installed, does not support this GPU, or refuses the engine; or
            the engine has plugins, and their library is not there or another one.
    """

    def __init__(self, engine: bytearray, info: EngineInfo, device: torch.device) -> None:
        self.img_size = info.config.img_size
        self.device = device = resolved(device)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self.computed_by = (
            f"tensorrt {info.precision} {info.library} {info.library_version} "
            f"{info.engine_sha256[:12]}"
        )
        self._max_batch_size = info.max_batch_size
        self._output_shape = info.config.output_shape
        self._trt = import_tensorrt(info.library)
        self._log = shared_log(self._trt)
        self._log.errors.clear()
        if info.plugins in LIBRARY_PLUGINS:
            load_library(self._trt, info.plugins_sha256)
        with torch.cuda.device(device):
            # The engine lives in the runtime's memory and the context in the engine's.
            self._runtime = self._accepted(self._make_runtime())
            self._engine = self._accepted(self._runtime.deserialize_cuda_engine(engine))
            self._context = self._accepted(self._engine.create_execution_context())
            self._stream = torch.cuda.Stream()
            wait_when_deleted(self, self._stream)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32.

        The work is queued in the order of torch's current stream of the device.

        Raises:
            InputError: another shape, dtype or device than the engine takes.
            EngineError: TensorRT could not run the engine, or the process was forked from the one
                that made the encoder.
        """
        check_pictures(x, self.img_size, self.device, self._max_batch_size)
        check_process(self._process)
        with as_written(), torch.cuda.device(self.device), self._lock:
            x = x.contiguous()
            output = torch.empty(
                len(x), *self._output_shape, dtype=torch.float32, device=self.device
            )
            caller = torch.cuda.current_stream()
            # Not on the caller's own stream: that is mostly the default stream, which TensorRT
            # synchronises with at every call.
            self._stream.wait_stream(caller)
            context = self._context
            queued = (
                context.set_input_shape(INPUT, tuple(x.shape))
                and context.set_tensor_address(INPUT, x.data_ptr())
                and context.set_tensor_address(OUTPUT, output.data_ptr())
                and context.execute_async_v3(self._stream.cuda_stream)
            )
            caller.wait_stream(self._stream)
            if not queued:
                raise EngineError(f"{self._trt.__name__} could not run: {self._log.first_error()}")
            return output

    def _make_runtime(self) -> Any:
        try:
            return self._trt.Runtime(self._log)
        except (TypeError, RuntimeError):  # the binding's way to say that there is none
            return None

    def _accepted(self, made: Any) -> Any:
        if made is None:
            name = torch.cuda.get_device_name(self.device)
            major, minor = torch.cuda.get_device_capability(self.device)
            raise EngineError(
                f"{self._trt.__name__} {self._trt.__version__} does not run this engine on {name} "
                f"(compute capability {major}.{minor}): {self._log.first_error()}; "
                "build it again for this GPU, or choose --backend cuda"
            )
        return made

"""TensorRT's runtime for a Python that NVIDIA's bindings are not made for.

The bindings of TensorRT 8.6 need CPython 3.10 or older, and torch here may be in a newer one. This
module has of them what ``samtrt.encoders.tensorrt.runtime`` asks for, over the C++ library, which
``benchmarks/tensorrt_engines.py`` compiles: ``$SAMTRT_TENSORRT_RUNTIME`` says where it is.
"""

import ctypes
import enum
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_c = ctypes.CDLL(os.environ["SAMTRT_TENSORRT_RUNTIME"])
_POINTER, _TEXT = ctypes.c_void_p, ctypes.c_char_p
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, _TEXT)
_REPORT = ctypes.CFUNCTYPE(None, _TEXT, ctypes.c_float)
for _name, _result, *_arguments in (
    ("make_runtime", _POINTER, _LOG),
    ("deserialize", _POINTER, _POINTER, _POINTER, ctypes.c_size_t),
    ("make_context", _POINTER, _POINTER),
    ("device_memory", ctypes.c_size_t, _POINTER),
    ("set_shape", ctypes.c_int, _POINTER, _TEXT, ctypes.c_int, ctypes.POINTER(ctypes.c_int)),
    ("set_address", ctypes.c_int, _POINTER, _TEXT, _POINTER),
    ("enqueue", ctypes.c_int, _POINTER, _POINTER),
    ("profile", None, _POINTER, _REPORT),
    ("delete_context", None, _POINTER),
    ("delete_engine", None, _POINTER),
    ("delete_runtime", None, _POINTER),
    ("load_library", ctypes.c_int, _TEXT),
    ("count_creators", ctypes.c_int),
    ("describe_creator", None, ctypes.c_int, ctypes.POINTER(_TEXT)),
    ("version", ctypes.c_int),
):
    _function = getattr(_c, _name)
    _function.restype, _function.argtypes = _result, _arguments

_version = _c.version()
__version__ = f"{_version // 1000}.{_version // 100 % 10}.{_version % 100}"


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        def log(severity: int, message: bytes) -> None:
            logger.log(ILogger.Severity(severity), message.decode(errors="replace"))

        _kept.append(_LOG(log))
        self._handle = _c.make_runtime(_kept[-1])

    def deserialize_cuda_engine(self, engine: bytearray) -> "Engine | None":
        content = (ctypes.c_char * len(engine)).from_buffer(engine)
        handle = _c.deserialize(self._handle, ctypes.addressof(content), len(engine))
        return Engine(self, handle) if handle else None

    def __del__(self) -> None:
        _c.delete_runtime(self._handle)


class Engine:
    def __init__(self, runtime: Runtime, handle: int) -> None:
        self._runtime, self._handle = runtime, handle
        self.device_memory_size = _c.device_memory(handle)

    def create_execution_context(self) -> "Context | None":
        handle = _c.make_context(self._handle)
        return Context(self, handle) if handle else None

    def __del__(self) -> None:
        _c.delete_engine(self._handle)


class Context:
    def __init__(self, engine: Engine, handle: int) -> None:
        self._engine, self._handle = engine, handle

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        sizes = (ctypes.c_int * len(shape))(*shape)
        return bool(_c.set_shape(self._handle, name.encode(), len(shape), sizes))

    def set_tensor_address(self, name: str, address: int) -> bool:
        return bool(_c.set_address(self._handle, name.encode(), address))

    def execute_async_v3(self, stream: int) -> bool:
        return bool(_c.enqueue(self._handle, stream))

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        """From now on each call tells each layer's milliseconds."""
        _kept.append(_REPORT(lambda layer, ms: report(layer.decode(errors="replace"), ms)))
        _c.profile(self._handle, _kept[-1])

    def __del__(self) -> None:
        _c.delete_context(self._handle)


class PluginCreator(NamedTuple):
    name: str
    plugin_version: str
    plugin_namespace: str


class _Registry:
    def load_library(self, path: str) -> bool:
        return bool(_c.load_library(path.encode()))

    @property
    def plugin_creator_list(self) -> list[PluginCreator]:
        creators = []
        for index in range(_c.count_creators()):
            texts = (_TEXT * 3)()
            _c.describe_creator(index, texts)
            creators.append(PluginCreator(*((text or b"").decode() for text in texts)))
        return creators


_kept: list[Any] = []  # what TensorRT calls back
_registry = _Registry()


def get_plugin_registry() -> _Registry:
    return _registry

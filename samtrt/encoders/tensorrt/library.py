"""Which TensorRT is installed: ``tensorrt`` (data-centre GPUs) or ``tensorrt_rtx`` (RTX GPUs).

Both have the same Python API; ``tensorrt`` is preferred where both are installed.
"""

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Any

from samtrt.errors import EngineError
from samtrt.hints import install

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_logger = logging.getLogger("samtrt.tensorrt")


def import_tensorrt(library: str | None = None) -> ModuleType:
    """The installed TensorRT library; its name and version are ``__name__`` and ``__version__``.

    Args:
        library: the one of ``LIBRARIES`` that an engine needs; None for the preferred one.

    Raises:
        EngineError: neither library is installed, or the one that is cannot be loaded.
    """
    broken = ""
    for name in LIBRARIES if library is None else (library,):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                broken = broken or f"{name} cannot be imported: {error}"
        except (ImportError, OSError, RuntimeError) as error:  # a shared library is missing
            broken = broken or f"{name} cannot be imported: {' '.join(str(error).split())}"
    raise EngineError(
        f"{broken or 'TensorRT is not installed'}; install it for data-centre GPUs "
        f"(`{install('gpu')}`) or for RTX GPUs (`{install('rtx')}`), or choose "
        "--backend cuda or cpu"
    )


@cache
def shared_log(trt: ModuleType) -> Any:
    """The one TensorRT logger of the process: TensorRT keeps the first that it is given.

    Messages go to ``logging``; errors are kept in ``errors``, each on one line, for whoever
    raises them.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,  # at length
        severity.VERBOSE: logging.DEBUG,
    }

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            if level == logging.ERROR:
                # Whoever called TensorRT raises them; printed here too, they would come twice.
                self.errors.append(" ".join(message.split()))
                level = logging.DEBUG
            _logger.log(level, "%s", message)

        def first_error(self) -> str:
            """The first error since the last call: the others mostly follow from it."""
            first = self.errors[0] if self.errors else "TensorRT gave no reason"
            self.errors.clear()
            return first

    return Log()

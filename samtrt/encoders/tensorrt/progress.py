"""Shows how far a TensorRT build is, and lets Ctrl-C end it."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TextIO

from samtrt.console import ProgressBar

_PRINTED_DEPTH = 1  # of nested phases, in a file or pipe


@dataclass
class _Phase:
    parent: str | None
    steps: int
    depth: int
    done: int = 0


def _self_contained(method: Callable[..., None]) -> Callable[..., bool]:
    """A callback that holds the lock and lets no exception into TensorRT, which could not take it.

    Its result is what ``step_complete`` answers: whether the build shall go on.
    """

    @wraps(method)
    def callback(self: Any, *args: Any) -> bool:
        try:
            with self._lock:
                method(self, *args)
        except KeyboardInterrupt:
            self._interrupted = True
        except OSError:
            pass  # nobody reads the progress any more; the build goes on
        return not self._interrupted

    return callback


def make_progress_monitor(trt: Any, show: bool = True, stream: TextIO | None = None) -> Any:
    """An ``IProgressMonitor`` with a progress bar, or a line for each main phase where the stream
    is not a terminal.

    After the build, ``close()`` takes the bar away and raises KeyboardInterrupt if the user
    pressed Ctrl-C.

    Args:
        show: False for the handling of Ctrl-C only.
        stream: where to show it; stderr by default.
    """
    output = stream or sys.stderr

    base: Any = getattr(trt, "IProgressMonitor", object)  # since TensorRT 9

    class ProgressMonitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self._lock = threading.RLock()  # phases run in several threads
            self._phases: dict[str, _Phase] = {}
            self._interrupted = False
            self._start = time.monotonic()
            self._bar = ProgressBar(1.0, output, show, keep=False, count=False)

        @_self_contained
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            depth = self._phases[parent].depth + 1 if parent in self._phases else 0
            self._phases[name] = _Phase(parent, steps, depth)
            if self._bar.visible:
                self._bar.describe(name)
                self._show()
            elif show and depth <= _PRINTED_DEPTH:
                seconds = time.monotonic() - self._start
                self._bar.print_line(f"TensorRT: {name.lower()} ({seconds:.1f} s)")

        @_self_contained
        def step_complete(self, name: str, step: int) -> None:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._show()

        @_self_contained
        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)
            self._show()

        def close(self) -> None:
            self._bar.close()
            if self._interrupted:
                raise KeyboardInterrupt

        def _show(self) -> None:
            roots = [name for name, phase in self._phases.items() if phase.parent is None]
            if roots:
                self._bar.advance_to(min(self._fraction(roots[0]), 1.0))

        def _fraction(self, name: str) -> float:
            phase = self._phases[name]
            children = [child for child, other in self._phases.items() if other.parent == name]
            part = self._fraction(children[-1]) if children else 0.0
            return min((phase.done + part) / max(phase.steps, 1), 1.0)

    return ProgressMonitor()

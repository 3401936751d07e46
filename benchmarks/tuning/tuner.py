"""Runs launch configurations one by one: checked, then timed on a rested GPU."""

import itertools
import sys
import traceback
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.timing import graph_microseconds
from samtrt.checkpoints.config import EncoderConfig

BUFFERS = 4


class Tuner:
    """A wrong or failing configuration is reported, not timed.

    Attributes:
        rows: a dict for each configuration: section, label, error, and us or failure.
    """

    def __init__(
        self,
        config: EncoderConfig,
        batch: int = 1,
        precision: str = "fp16",
        shard: tuple[int, int] | None = None,
        device: str = "cuda",
    ) -> None:
        """
        Args:
            shard: (i, n): run each n-th configuration once, from the i-th on; check and time none.
        """
        self.config, self.batch, self.shard = config, batch, shard
        self.device = torch.device(device)
        self.dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        self.tolerance = 1.5e-3 if precision == "fp16" else 1.2e-2
        self.count = itertools.count()
        self.rows: list[dict[str, object]] = []

    @property
    def tokens(self) -> int:
        """Rows of the linear layers."""
        return self.batch * self.config.grid_size**2

    def random(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(*shape, device=self.device) * scale).to(dtype or self.dtype)

    def run(
        self,
        section: str,
        label: str,
        call: Callable[[int], object],
        checks: Sequence[tuple[Tensor, Tensor]] = (),
        flop: float = 0.0,
        moved: float = 0.0,
    ) -> None:
        """Checks and times one configuration, and prints its row.

        Args:
            call: the work on buffer i of ``BUFFERS``.
            checks: what ``call(0)`` writes, poisoned before, and the reference in double precision.
            flop, moved: of a call, in FLOP and bytes, for the rates.
        """
        number = next(self.count)
        if self.shard:
            if number % self.shard[1] == self.shard[0]:
                self._fill_cache(f"{section} {label}", call)
            return
        row: dict[str, object] = {"section": section, "label": label}
        try:
            row["error"] = self._error(call, checks)
            if not row["error"] < self.tolerance:
                row["failure"] = "wrong"
            else:
                calls = [lambda i=i: call(i) for i in range(BUFFERS)]
                row["us"] = graph_microseconds(calls * 2)
        except Exception as problem:
            row["failure"] = repr(problem)[:160]
            traceback.print_exc(file=sys.stderr)
        self.rows.append(row)
        print(line(row, flop, moved), flush=True)

    @staticmethod
    def _error(call: Callable[[int], object], checks: Sequence[tuple[Tensor, Tensor]]) -> float:
        """The largest relative L2 difference; NaN where there is one."""
        for output, _ in checks:
            output.fill_(float("nan"))
        call(0)
        torch.cuda.synchronize()
        errors = [
            (output.double() - reference).norm() / reference.norm() for output, reference in checks
        ]
        return float(torch.stack(errors).max()) if errors else 0.0  # (of NaN: NaN)

    @staticmethod
    def _fill_cache(name: str, call: Callable[[int], object]) -> None:
        try:
            call(0)
            torch.cuda.synchronize()
        except Exception as error:
            print(name, repr(error)[:200])


def line(row: dict[str, object], flop: float, moved: float) -> str:
    """A configuration as a line of text."""
    text = f"{row['section']:13s} {row['label']:50s} "
    time = row.get("us")
    if not isinstance(time, float):
        return text + f"FAILED {row['failure']} err {row.get('error')}"
    text += f"{time:8.1f} us"
    if flop:
        text += f" {flop / time / 1e6:6.0f} TFLOP/s"
    if moved:
        text += f" {moved / time / 1e6:5.2f} TB/s"
    return text + f"  err {row['error']:.1e}"

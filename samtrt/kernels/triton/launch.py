"""A launch of a Triton kernel: at once, or written down for whoever launches it later."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched, but for its tensors.

    Attributes:
        kernel: the function; its parameters stand as what it reads, sizes, and what it writes,
            which is the order in which TensorRT passes them.
        grid: programs along each axis; the last goes with the batch.
        sizes: 32-bit numbers that it is given, by name.
        numbers: others that it is given, or that are compiled in.
        constants: what is compiled in: ``tl.constexpr`` parameters, and tensors that are not there.
        num_warps: warps a program.
        num_stages: of its loops; None for Triton's own choice.
        registers: registers a thread, at most.
    """

    kernel: Any
    grid: tuple[int, int, int]
    sizes: dict[str, int]
    constants: dict[str, Any]
    numbers: dict[str, float] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int | None = None
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Triton's options."""
        options = {
            "num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.registers
        }  # fmt: skip
        return {name: value for name, value in options.items() if value is not None}

    def __call__(self, **tensors: Tensor | Any) -> None:
        """Launches it on the current stream; tensors, or their descriptors, by name."""
        self.kernel[self.grid](
            **tensors, **self.sizes, **self.numbers, **self.constants, **self.options
        )

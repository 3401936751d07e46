"""Scenes of a run, step by step, drawn ahead by worker processes.

Drawing is a few hundred small launches a batch: it keeps a CPU core busy for longer than a GPU
trains, so several processes draw on the GPU that trains.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samtrt.scenes.drawing import SceneBatch, generate


@dataclass(frozen=True)
class Plan:
    """Which scenes belong to which step of which process."""

    seed: int
    batch_size: int
    img_size: int
    rank: int
    world_size: int
    device: str

    def indices(self, step: int) -> Tensor:
        """[batch_size] of this process's scenes: no two steps or processes share one."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return torch.arange(first, first + self.batch_size)


_ON_CPU = ("extent", "kind")


class _Scenes(Dataset[dict[str, Tensor]]):
    """Item ``step`` is that step's batch, on the CPU: what processes can pass to each other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        plan = self.plan
        if plan.device != "cpu":
            torch.cuda.set_device(plan.device)
        scenes = generate(plan.seed, plan.indices(step), plan.img_size, plan.device)
        return {name: tensor.cpu() for name, tensor in vars(scenes).items()}


class _Steps:
    """The steps from ``start`` on, without an end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def load_scenes(plan: Plan, first_step: int, workers: int) -> Iterator[SceneBatch]:
    """Yields the batches of steps ``first_step``, ``first_step`` + 1, …, on the plan's device.

    Args:
        workers: processes that draw; 0 draws in this one.
    """
    loader = DataLoader(
        _Scenes(plan),
        batch_size=None,
        sampler=_Steps(first_step),
        num_workers=workers,
        pin_memory=plan.device != "cpu",
        multiprocessing_context="spawn" if workers else None,
    )
    for tensors in loader:
        moved = {
            name: tensor
            if name in ("extent", "kind")
            else tensor.to(plan.device, non_blocking=True)
            for name, tensor in tensors.items()
        }
        yield SceneBatch(**moved)

"""Trains the demo SAM on procedural scenes, on any number of GPUs, in stretches that resume.

One GPU:      python -m training.train --output runs/demo --steps 12000
Several:      torchrun --nproc-per-node 3 -m training.train --output runs/demo --seconds 1100
Next stretch: the same command again; it goes on from OUTPUT/state.pt.
"""

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.console import run_script
from samtrt.errors import InputError
from samtrt.files import replacing
from samtrt.scenes import drawing as scenes
from samtrt.scenes.randomness import SceneRandom
from training import model, objective
from training.loader import Plan, load_scenes
from training.optimization import Gradients, build_optimizers

PROMPT_SEED = 1 << 20  # apart from the scenes' streams
FIELDS = (
    *("step", "seconds", "learning_rate", "gradient_norm", "loss", "iou_click", "iou_box"),
    *("iou_round2", "iou_round3", "iou_loss", "images_per_second"),
)

# What a run keeps through all its stretches, by name in the options.
RECIPE = (
    *("steps", "seconds", "seed", "batch_size", "masks", "rounds", "learning_rate", "warmup"),
    *("weight_decay", "clip", "optimizer", "ema", "img_size"),
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of state.pt, sam_demo.pth and log.csv")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the whole schedule, in steps")
    length.add_argument("--seconds", type=float, help="length of the whole schedule, in seconds")
    add("--stop-after", type=float, default=math.inf, help="seconds of this stretch")
    add("--init-from", type=Path, help="start from these weights (.pth), not from random ones")
    add("--seed", type=int, default=1, help="of parameters, scenes and prompts (default: 1)")
    add("--batch-size", type=int, default=8, help="pictures a GPU a step (default: 8)")
    add("--masks", type=int, default=8, help="masks a picture (default: 8)")
    add("--rounds", type=int, default=3, help="rounds of prompts (default: 3)")
    add("--learning-rate", type=float, default=1e-3)
    add("--warmup", type=int, default=250, help="steps (default: 250)")
    add("--weight-decay", type=float, default=0.05)
    add("--clip", type=float, default=1.0, help="largest norm of the gradient (default: 1)")
    add("--optimizer", choices=("adamw", "muon"), default="adamw")
    add("--ema", type=float, default=0.999, help="decay of the averaged weights (default: 0.999)")
    add("--save-every", type=float, default=60, help="seconds (default: 60)")
    add("--workers", type=int, default=0, help="processes a GPU that draw scenes (default: 0)")
    add("--log-every", type=int, default=25, help="steps (default: 25)")
    add("--compile", action="store_true", help="torch.compile what costs most")
    add("--img-size", type=int, default=1024, help="smaller only for tests")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and where it computes."""

    rank: int
    size: int
    device: torch.device


def join_world() -> World:
    """One process a GPU under torchrun (NCCL; gloo without GPUs), else one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        distributed.init_process_group("nccl" if cuda else "gloo")
    return World(int(os.environ.get("RANK", "0")), size, device)


class Training:
    """The run: everything that a later stretch must find again is in ``state_dict``."""

    def __init__(self, options: argparse.Namespace, world: World) -> None:
        self.options, self.world = options, world
        sam = model.new_sam(model.demo_config(options.img_size), options.seed)
        if options.init_from is not None:
            weights = read_checkpoint(options.init_from).tensors
            sam.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        self.sam = sam.to(world.device)
        self.objective = objective.Objective(self.sam, options.masks, options.rounds)
        self.parameters = list(self.sam.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizers = build_optimizers(
            self.sam, options.optimizer, options.learning_rate, options.weight_decay
        )
        self.gradients = Gradients(self.parameters, options.clip)
        self.step, self.seconds = 0, 0.0
        self.plan = Plan(
            options.seed,
            options.batch_size,
            options.img_size,
            world.rank,
            world.size,
            str(world.device),
        )
        self.source: Iterator[scenes.SceneBatch] | None = None  # starts with the first step

    def state_dict(self) -> dict[str, Any]:
        return {
            "sam": self.sam.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "recipe": self.recipe(),
        }

    def recipe(self) -> dict[str, Any]:
        """The options that one run keeps through all its stretches."""
        return {name: getattr(self.options, name) for name in RECIPE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``'s state.

        Raises:
            InputError: the options are not those of the run so far.
        """
        recipe = self.recipe()
        changed = [name for name in RECIPE if state["recipe"][name] != recipe[name]]
        if changed:
            name = changed[0]
            raise InputError(
                f"{self.options.output}/state.pt was made with {name}={state['recipe'][name]} and "
                f"this stretch has {name}={recipe[name]}; give the same options, or another "
                "--output"
            )
        self.sam.load_state_dict(state["sam"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def progress(self) -> float:
        """How much of the schedule is over, 0…1."""
        if self.options.steps:
            return min(1.0, self.step / self.options.steps)
        return min(1.0, self.seconds / self.options.seconds)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to 1 % of the peak."""
        warm = min(1.0, (self.step + 1) / self.options.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return self.options.learning_rate * warm * (0.01 + 0.99 * cosine)

    def train_step(self) -> dict[str, Tensor]:
        """One step on scenes that nobody saw before."""
        options, world = self.options, self.world
        rate = self.learning_rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        if self.source is None:
            self.source = load_scenes(self.plan, self.step, options.workers)
        batch = next(self.source)
        indices = self.plan.indices(self.step)
        random = SceneRandom(options.seed + PROMPT_SEED, indices.to(world.device))
        self.gradients.flat.zero_()
        bfloat16 = world.device.type == "cuda"
        with torch.autocast(world.device.type, torch.bfloat16, enabled=bfloat16):
            loss, figures = self.objective(batch, random)
        loss.backward()
        figures["gradient_norm"] = self.gradients.finish(world.size)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(options.ema, self.step / (self.step + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return figures

    def save(self) -> None:
        """Writes state.pt, and the averaged weights as sam_demo.pth, each whole or not at all."""
        with replacing(self.options.output / "state.pt") as path:
            torch.save(self.state_dict(), path)
        with replacing(self.options.output / "sam_demo.pth") as path:
            torch.save(self.export(), path)

    def export(self) -> dict[str, Tensor]:
        """The averaged weights in fp16 under Meta's names, as ``sam_vit_b_01ec64.pth`` has them."""
        names = [name for name, _ in self.sam.named_parameters()]
        averaged = dict(zip(names, self.average, strict=True))
        return {
            name: averaged.get(name, tensor).detach().to("cpu", torch.float16).contiguous().clone()
            for name, tensor in self.sam.state_dict().items()
        }


def compile_parts(training: Training) -> None:
    """Fuses what moves most memory: the encoder, the losses, the decoder."""
    training.objective.encode = torch.compile(model.encode, dynamic=False)
    training.objective.mask_losses = torch.compile(objective.mask_losses, dynamic=False)
    model.predict_masks = torch.compile(model.predict_masks)


class Log:
    """log.csv of a run: appended by each stretch, one row every few steps."""

    def __init__(self, path: Path) -> None:
        new = not path.is_file()
        self.file = path.open("a", newline="")
        self.writer = csv.DictWriter(self.file, FIELDS, restval="", extrasaction="ignore")
        if new:
            self.writer.writeheader()

    def write(self, row: dict[str, float]) -> None:
        self.writer.writerow({name: f"{value:.6g}" for name, value in row.items()})
        self.file.flush()
        shown = " ".join(f"{name}={value:.4g}" for name, value in row.items())
        print(shown, flush=True)


def _agree_on_time(training: Training, spent: float) -> float:
    """Rank 0's clock, so that all processes follow one schedule and stop together."""
    if training.world.size == 1:
        return spent
    clock = torch.tensor([spent], dtype=torch.float64, device=training.world.device)
    distributed.broadcast(clock, 0)
    return clock.item()


def run(options: argparse.Namespace) -> None:
    world = join_world()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if options.img_size % 64 or options.img_size <= 0:
        raise InputError(f"--img-size is {options.img_size}; expected a multiple of 64")
    for name in ("batch_size", "masks", "rounds", "warmup", "log_every"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is {getattr(options, name)}; expected 1 or more")
    options.output.mkdir(parents=True, exist_ok=True)
    training = Training(options, world)
    state = options.output / "state.pt"
    if state.is_file():
        training.load_state_dict(torch.load(state, map_location=world.device, weights_only=True))
    if options.compile:
        compile_parts(training)
    log = Log(options.output / "log.csv") if world.rank == 0 else None

    before = training.seconds
    start = last = saved = time.monotonic()
    collected: list[dict[str, Tensor]] = []
    while training.progress() < 1:
        collected.append(training.train_step())
        last_step = options.steps == training.step
        if training.step % options.log_every and not last_step:
            continue
        figures = {
            name: torch.stack([row[name] for row in collected]).mean().item()
            for name in collected[0]
        }
        now = time.monotonic()
        spent = _agree_on_time(training, now - start)
        training.seconds = before + spent
        if log:
            speed = len(collected) * options.batch_size * world.size / (now - last)
            rate = training.learning_rate()
            row = {"step": training.step, "seconds": training.seconds, "learning_rate": rate}
            log.write({**row, **figures, "images_per_second": speed})
            if now - saved > options.save_every:
                training.save()
                saved = now
        last, collected = now, []
        if spent > options.stop_after:
            break
    if world.rank == 0:
        training.save()
    if world.size > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def main() -> None:
    run(parse_arguments())


if __name__ == "__main__":
    sys.exit(run_script(main))

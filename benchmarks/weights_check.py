"""What it costs to see whether a model's weights have changed, beside its encode.

    python benchmarks/weights_check.py --model vit_b
    python benchmarks/weights_check.py --model vit_b --device cuda

``samtrt.accelerate`` looks at layers and weights before each picture; the weights are read for it.
Turns alternate, medians count, and the encode's time includes the check. Random weights.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from samtrt.checkpoints.config import EncoderConfig, vit_b, vit_h, vit_l
from samtrt.console import run_script
from samtrt.encoders.accelerated import accelerate, acceleration_of
from samtrt.modeling.image_encoder import build_image_encoder

MODELS = {"vit_b": vit_b, "vit_l": vit_l, "vit_h": vit_h}


@dataclass(frozen=True)
class Cost:
    """Medians in milliseconds."""

    check: float
    encode: float

    def __str__(self) -> str:
        share = self.check / self.encode
        return f"check {self.check:.1f} ms, encode {self.encode:.0f} ms: {share:.2%}"


def cost_of_check(config: EncoderConfig, device: torch.device, runs: int) -> Cost:
    """Of an encoder of these sizes."""
    torch.manual_seed(0)
    encoder = accelerate(build_image_encoder(config).eval().to(device))
    acceleration = acceleration_of(encoder)
    assert acceleration is not None
    picture = torch.randn(1, 3, config.img_size, config.img_size, device=device)
    checks, encodes = [], []
    with torch.no_grad():
        encoder(picture)  # makes the runtime
        for _ in range(runs):
            checks.append(_milliseconds(lambda: acceleration.observe(encoder), device))
            encodes.append(_milliseconds(lambda: encoder(picture), device))
    return Cost(median(checks), median(encodes))


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="vit_b")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    config = MODELS[arguments.model]()
    print(f"{arguments.model}, {cost_of_check(config, arguments.device, arguments.runs)}")


if __name__ == "__main__":
    sys.exit(run_script(main))

"""What it costs the embedding where the neck's two convolutions add up in fp16; needs no GPU.

    python benchmarks/neck_accumulation.py

Operands and results are fp16 in every line; what differs is the sum between them: in fp32, or
rounded to fp16 after every so many products, as a tensor core with fp16 accumulators does it. The
trunk is in fp32, for the demo model on the parity gate's pictures. Of ViT-H, with random weights,
the neck alone is compared, on random numbers.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samtrt.building.accuracy import load_picture, relative_l2
from samtrt.building.gate_pictures import drawn_pictures
from samtrt.building.parity import LIMITS, Comparison, verdict
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.meta import read_parameters
from samtrt.checkpoints.parameters import random_parameters
from samtrt.modeling.bound import bound_encoder
from samtrt.models.catalogue import find_checkpoint

STEP = 16  # products that one instruction sums for each element
SUMS: dict[str, Sequence[int | None]] = {  # of neck.0, of neck.2
    "both in fp32": (None, None),
    "neck.0 in fp16": (STEP, None),
    "neck.2 in fp16": (None, STEP),
    "both in fp16": (STEP, STEP),
}


def product(a: Tensor, b: Tensor, step: int | None) -> Tensor:
    """``a @ b.T`` of fp16 operands, as fp16 values; the sum is rounded after each ``step``."""
    a, b = a.half().float(), b.half().float()
    if step is None:
        return (a @ b.T).half().float()
    total = torch.zeros(len(a), len(b))
    for columns in range(0, a.shape[1], step):
        part = slice(columns, columns + step)
        total = (total + a[:, part] @ b[:, part].T).half().float()
    return total


def embed(neck: nn.Sequential, x: Tensor, steps: Sequence[int | None]) -> Tensor:
    """The neck of tokens [1, h, w, C], with fp32 norms → [1, 256, h, w]."""
    _, height, width, channels = x.shape
    rows = product(x.reshape(-1, channels), neck[0].weight.flatten(1), steps[0])
    rows = _norm(neck[1], rows).half().float()
    picture = rows.view(1, height, width, -1).permute(0, 3, 1, 2)
    # Taps outside, channels inside: the order of channels last.
    taps = F.unfold(picture, 3, padding=1).view(picture.shape[1], 9, -1).permute(2, 1, 0)
    weight = neck[2].weight.permute(0, 2, 3, 1).flatten(1)
    rows = _norm(neck[3], product(taps.flatten(1), weight, steps[1])).half().float()
    return rows.view(1, height, width, -1).permute(0, 3, 1, 2)


def _norm(layer: nn.Module, rows: Tensor) -> Tensor:
    weight, bias = layer.weight.to(rows.dtype), layer.bias.to(rows.dtype)
    return F.layer_norm(rows, rows.shape[1:], weight, bias, layer.eps)


def exact(neck: nn.Sequential, x: Tensor) -> Tensor:
    """The same in float64."""
    neck, x = neck.double(), x.double().permute(0, 3, 1, 2)
    for layer in neck:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, padding=layer.padding)
        else:
            x = F.layer_norm(
                x.permute(0, 2, 3, 1), x.shape[1:2], layer.weight, layer.bias, layer.eps
            ).permute(0, 3, 1, 2)
    neck.float()
    return x


@torch.inference_mode()
def main() -> None:
    parameters = read_parameters(find_checkpoint("demo"))
    encoder = bound_encoder(parameters.encoder_config, parameters.encoder())
    for index in (0, 2):
        weight = encoder.neck[index].weight
        small = weight[weight.abs() < torch.finfo(torch.float16).smallest_normal]
        share = (small.norm() / weight.norm()).item()
        count = f"{small.numel()} of {weight.numel()} weights"
        print(f"demo model, neck.{index}: {count} are subnormal in fp16, {share:.1e} of their norm")
    comparison = Comparison(parameters)
    pictures = [load_picture(s, encoder.img_size) for s in drawn_pictures()]
    expected = [comparison.expect(picture) for picture in pictures]
    tokens = [encoder.trunk(picture.pixels)[0].half().float() for picture in pictures]
    for name, steps in SUMS.items():
        differences = [
            comparison.difference(embed(encoder.neck, x, steps), each)
            for x, each in zip(tokens, expected, strict=True)
        ]
        result = verdict(differences, LIMITS["fp16"], len(pictures))
        print(f"demo model, {name}: {result}", flush=True)

    config = EncoderConfig(embed_dim=1280, depth=1, num_heads=16, global_attn_indexes=(0,))
    neck = bound_encoder(config, random_parameters(config).encoder()).neck
    x = torch.randn(1, 64, 64, 1280, generator=torch.Generator().manual_seed(0)).half().float()
    reference = exact(neck, x)
    for name, steps in SUMS.items():
        error = relative_l2(embed(neck, x, steps), reference)
        print(f"a neck of ViT-H's size, {name}: {error:.2e}", flush=True)


if __name__ == "__main__":
    main()

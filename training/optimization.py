"""Gradients that never spoil a step, and which optimiser takes which parameter."""

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class Gradients:
    """All gradients as one flat tensor: averaged, guarded and clipped without waiting for the GPU.

    A step whose gradient is not finite somewhere becomes a gradient of zero everywhere, on all
    processes alike.

    Args:
        parameters: float32, on one device; their ``.grad`` become views of ``flat``.
        limit: largest norm.
    """

    def __init__(self, parameters: list[Tensor], limit: float) -> None:
        self.limit = limit
        self.flat = torch.zeros(
            sum(p.numel() for p in parameters), device=parameters[0].device, dtype=torch.float32
        )
        start = 0
        for parameter in parameters:
            parameter.grad = self.flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def finish(self, processes: int) -> Tensor:
        """After backward: makes ``.grad`` what the optimiser takes; returns the norm before."""
        if processes > 1:
            distributed.all_reduce(self.flat)
            self.flat /= processes
        norm = self.flat.norm()
        factor = (self.limit / norm.clamp_min(1e-6)).clamp_max(1)
        self.flat.mul_(factor).masked_fill_(~torch.isfinite(norm), 0)
        return norm


def build_optimizers(
    sam: Any, name: str, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; or Muon for the linear layers and AdamW for the rest.

    Embeddings, relative positions, biases and norms are not decayed. The hypernetworks' layers,
    whose outputs are weights themselves, stay with AdamW.

    Args:
        name: ``adamw`` or ``muon``; Muon's updates are scaled to AdamW's, so both take one rate.
    """
    matrices: list[Tensor] = []
    decayed: list[Tensor] = []
    undecayed: list[Tensor] = []
    for path, module in sam.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if own == "weight" and isinstance(module, nn.Linear):
                use_muon = name == "muon" and "hypernetworks" not in path
                (matrices if use_muon else decayed).append(parameter)
            elif own == "weight" and isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                decayed.append(parameter)
            else:
                undecayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    fused = next(sam.parameters()).is_cuda
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=fused)
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers

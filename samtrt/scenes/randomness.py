"""Random numbers as a pure function of (seed, scene, draw): no state, the same on every device."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A bijective hash of 32-bit integers held in int64 (``lowbias32`` by Chris Wellons).

    Integer arithmetic alone, so the CPU and the GPU agree bit for bit.
    """
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


def combine(key: Tensor, value: Tensor | int) -> Tensor:
    """A new key from a key and a counter."""
    return mix((key * 0x9E3779B1 + value + 0x7F4A7C15) & _MASK)


class SceneRandom:
    """One stream of draws for each of B scenes.

    Scene ``index`` of a seed draws the same numbers in whatever batch it stands, so a data set is
    (seed, number of scenes), and a resumed training run needs no random state.
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        """
        Args:
            seed: the data set.
            indices: [B] int64, which scenes of it.
        """
        start = mix(torch.full_like(indices, seed & _MASK))
        self.keys = combine(start, indices & _MASK)
        self._draws = 0

    def lattice(self, *shape: int) -> Tensor:
        """[B, *shape] uniform in [0, 1), float32: the next draw of each scene."""
        count = 1
        for size in shape:
            count *= size
        self._draws += 1
        key = combine(self.keys, self._draws)[:, None]
        positions = torch.arange(count, device=key.device)[None]
        # 24 bits: the most that float32 holds without rounding up to 1.
        value = (combine(key, positions) >> 8).to(torch.float32) / (1 << 24)
        return value.view(len(self.keys), *shape)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[B, *shape] uniform in [low, high)."""
        return low + (high - low) * self.lattice(*shape)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[B, *shape] whose logarithm is uniform."""
        return low * (high / low) ** self.lattice(*shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """[B, *shape] int64, uniform in [low, high)."""
        return low + (self.lattice(*shape) * (high - low)).to(torch.int64)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """[B, *shape] bool, true with that probability."""
        return self.lattice(*shape) < probability

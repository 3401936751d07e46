"""A model with channels far above the rest, as trained ViTs have them and random weights don't.

The same function, in exact arithmetic: in every block one channel of V in each head is a factor
larger, and ``attn.proj`` divides it out; some weights of the norms are larger, and the layers
behind them divide that out.

Channels of the residual stream cannot be made larger so: every LayerNorm's σ would follow them,
differently for each token. (Tried on the demo model, three channels times 30, σ's mean growth given
back: the embedding was another one altogether, relative L2 114 %, that fp16 too is 1.3 % off.) A
layer behind such a stream is in ``tests/encoders/test_fp8_quantisation.py``.
"""

from dataclasses import replace

import numpy as np

from samtrt.checkpoints.parameters import Parameters
from samtrt.checkpoints.shapes import ENCODER_PREFIX

NORM_CHANNELS = 3
_READERS = {"norm1": "attn.qkv", "norm2": "mlp.lin1"}


def with_outliers(parameters: Parameters, factor: float) -> Parameters:
    """Parameters of a SAM encoder whose blocks are alike, with channels so many times as large."""
    config = parameters.encoder_config
    tensors = {name: np.array(value, np.float32) for name, value in parameters.encoder().items()}
    heads = np.arange(config.num_heads) * config.head_dim
    some = np.linspace(0, config.embed_dim - 1, NORM_CHANNELS).astype(int)
    for block in range(config.depth):
        path = f"blocks.{block}."
        for part in ("weight", "bias"):
            tensors[f"{path}attn.qkv.{part}"][2 * config.embed_dim + heads] *= factor
            for norm in _READERS:
                tensors[f"{path}{norm}.{part}"][some] *= factor
        tensors[f"{path}attn.proj.weight"][:, heads] /= factor
        for reader in _READERS.values():
            tensors[f"{path}{reader}.weight"][:, some] /= factor
    named = {ENCODER_PREFIX + name: value for name, value in tensors.items()}
    note = f"{parameters.note} Some channels are {factor:g} times as large.".strip()
    return replace(parameters, tensors={**parameters.tensors, **named}, note=note)

"""Which parameters a model has: the set that it was given, or others."""

import hashlib
import weakref
from typing import Any

import torch
from torch import nn

from samtrt.checkpoints.parameters import tensors_digest
from samtrt.encoders.accelerated import acceleration_of
from samtrt.encoders.modules import LazyImageEncoder
from samtrt.encoders.watch import Checksum, Watch


class ParametersIdentity:
    """Holds the SHA-256 of a model's parameters against what became of them.

    Args:
        model: with an ``image_encoder``; held weakly.
        sha256: of its parameters as they are now; empty where not known.
    """

    def __init__(self, model: Any, sha256: str) -> None:
        self._given = sha256  # what an encoder without parameters was made of
        self._look(model, sha256)

    def known(self, model: Any, thoroughly: bool = False) -> str:
        """The SHA-256 if it is known and nothing was seen to change since; else empty.

        Args:
            thoroughly: reads all parameters, so that writes through ``.data`` are seen too.
        """
        parts = list(model.children())
        is_same = len(parts) == len(self._parts) and all(
            part is seen() for part, seen in zip(parts, self._parts, strict=True)
        )
        changes = _changes(model.image_encoder, thoroughly)
        if self._sha256 and is_same and self._changes == changes:
            for watch in self._watches:
                if watch.changed_layer() is not None or watch.has_new_weights():
                    return ""
            if not thoroughly or all(checksum.is_unchanged() for checksum in self._checksums):
                return self._sha256
        return ""

    def sha256(self, model: Any) -> str:
        """The SHA-256 of the parameters as they are now."""
        if known := self.known(model, thoroughly=True):
            return known
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        found = tensors_digest(
            {
                name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
                for name, tensor in tensors.items()
            },
            getattr(model.image_encoder, "taps", ()),
        )
        if isinstance(model.image_encoder, LazyImageEncoder):
            found = hashlib.sha256(f"{found}, encoder of {self._given}".encode()).hexdigest()
        self._look(model, found)
        return found

    def _look(self, model: Any, sha256: str) -> None:
        encoder = model.image_encoder
        self._sha256 = sha256
        self._parts = [weakref.ref(part) for part in model.children()]
        self._changes = _changes(encoder, True)
        parts = [part for part in model.children() if part is not encoder]
        if acceleration_of(encoder) is None:  # which looks itself
            parts.append(encoder)
        self._watches = [Watch(part) for part in parts]
        self._checksums = [Checksum(part.state_dict().values()) for part in parts]


def _changes(encoder: nn.Module, thoroughly: bool) -> int:
    acceleration = acceleration_of(encoder)
    return acceleration.observe(encoder, thoroughly) if acceleration else -1

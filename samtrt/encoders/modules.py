"""Runtimes as modules and modules as runtimes: the two forms of a model's image encoder."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from samtrt.encoders.accelerated import acceleration_of, is_ours
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import InputError

MakeEncoder = Callable[[torch.device], ImageEncoder]

_ATTRIBUTES = ("patch_embed", "pos_embed", "blocks", "neck")


class LazyImageEncoder(nn.Module):
    """An ``ImageEncoder`` that is made at its first use, and again after a move.

    It stands where ``ImageEncoderViT`` stands in a ``Sam`` that was loaded for inference, from an
    engine or from parameters, so that nothing is held twice: it has no parameters, and its
    ``state_dict`` is empty. For any number of threads.

    Args:
        make: makes the encoder for a device.
        img_size: side S of its square input, in pixels.
    """

    is_runtime = True
    device_marker: Tensor

    def __init__(self, make: MakeEncoder, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.register_buffer("device_marker", torch.empty(0, device="cpu"), persistent=False)
        self._make = make
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._encoder: ImageEncoder | None = None
        self._encoder_device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.device_marker.device

    @property
    def computed_by(self) -> str:
        """See ``ImageEncoder``; makes the encoder if it is not yet."""
        return self.encoder.computed_by

    @property
    def encoder(self) -> ImageEncoder:
        """The runtime on the device."""
        with self._lock:  # one encoder, however many threads ask first
            device = self.device
            if self._encoder is None or self._encoder_device != device:
                self._encoder = None  # the old one's memory goes first
                self._encoder = self._made(device)
                self._encoder_device = device
            return self._encoder

    def _made(self, device: torch.device) -> ImageEncoder:
        try:
            return self._make(device)
        except AttributeError as error:
            # Out of a property, nn.Module would take it for "no attribute encoder".
            raise RuntimeError(f"the image encoder cannot be made: {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        return self.encoder(x)

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES:
            raise AttributeError(
                f"this model was loaded for inference, and its image encoder has no {name}; "
                "sam_model_registry[…](checkpoint=…) makes one with layers and parameters"
            )
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        with self._lock:
            before = self.device
            super()._apply(fn, recurse)
            if self.device != before:
                self._encoder = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the encoder, which a copy or another process makes for itself."""
        transient = ("_lock", "_encoder", "_encoder_device")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LazyImageEncoder":
        # Both make their encoders of the same parameters, which nobody writes to.
        memo[id(self._make)] = self._make
        copied = self.__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied


class ModelEncoder:
    """The module that stands in a model for its image encoder, as an ``ImageEncoder``.

    Args:
        module: called on [B, 3, S, S] in its own dtype, without gradients.
        img_size: side S, in pixels.
        device: where its input must be.
        remark: what else its output depends on, for ``computed_by``.
    """

    def __init__(
        self, module: nn.Module, img_size: int, device: torch.device, remark: str = ""
    ) -> None:
        self.img_size = img_size
        self.device = device
        self._module = module
        self._remark = remark

    @property
    def computed_by(self) -> str:
        """See ``ImageEncoder``; empty where somebody else's code computes, which has no name."""
        module, found = self._module, ""
        acceleration = acceleration_of(module)
        if isinstance(module, LazyImageEncoder):
            found = module.computed_by
        elif acceleration and (runtime := acceleration.runtime_of(module)):
            found = runtime.computed_by
        elif is_ours(module):
            dtype = str(self._dtype).removeprefix("torch.")
            found = f"torch {dtype} {torch.__version__}"
        return f"{found}{self._remark}" if found else ""

    @property
    def _dtype(self) -> torch.dtype:
        parameter = next(self._module.parameters(), None)
        return torch.float32 if parameter is None else parameter.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, C, h, h] float32.

        Raises:
            InputError: the module returns something else.
        """
        with torch.no_grad():
            features = self._module(x.to(self._dtype))
        if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(x):
            found = type(features).__name__
            if isinstance(features, Tensor):
                found = f"a tensor {list(features.shape)}"
            raise InputError(
                f"image_encoder is a {type(self._module).__name__}, which returns {found}; "
                f"expected an embedding [{len(x)}, C, h, h]"
            )
        return features.float()

"""Who is compared and timed: our encoders that run on this machine, and Meta's own code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from samtrt.building.accuracy import Decode
from samtrt.building.build import BACKEND_PRECISIONS
from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.prompts import Prompts
from samtrt.encoders.choice import why_not_cuda
from samtrt.encoders.cpu import has_fast_bf16
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.encoders.engine import check_engine
from samtrt.encoders.load import encoder_from_parameters, load_encoder
from samtrt.encoders.packed import DTYPES
from samtrt.encoders.protocol import ImageEncoder
from samtrt.modeling.prompt_encoder import LABEL_BOX_TOP_LEFT
from samtrt.reports.peers import meta_image_encoder, meta_sam


@dataclass(frozen=True)
class Contestant:
    """An image encoder that has not been made yet, so that only one takes up memory at a time.

    Attributes:
        name: what a table calls it.
        make: makes it ready to run.
        ours: whether it is this project's code.
    """

    name: str
    make: Callable[[], ImageEncoder]
    ours: bool = True


def our_contestants(
    parameters: Parameters,
    engines: Sequence[str | Path] = (),
    backends: Sequence[str] = ("cuda", "cpu"),
    max_batch_size: int = 1,
) -> list[Contestant]:
    """Every backend and precision that runs here without an engine, then the engines given.

    Raises:
        EngineError: an engine that does not belong to this machine or these parameters.
    """
    found = [
        Contestant(
            f"samtrt {backend} {precision}",
            partial(
                encoder_from_parameters,
                parameters,
                backend,
                precision=precision,
                max_batch_size=max_batch_size,
            ),
        )
        for backend in backends
        for precision in BACKEND_PRECISIONS[backend]
        if _runs_here(backend, precision)
    ]
    for folder in engines:
        info = check_engine(folder, parameters.sha256)
        name = f"samtrt {info.backend} {info.precision}, engine {folder}"
        found.append(Contestant(name, partial(load_encoder, folder)))
    return found


def meta_contestants(parameters: Parameters, device: torch.device) -> list[Contestant]:
    """Meta's code in fp32, then in the half precision that the device is fast at, if any."""
    precisions = ["fp32"]
    if device.type == "cuda":
        precisions.append("fp16")
    elif has_fast_bf16():
        precisions.append("bf16")
    return [
        Contestant(
            f"segment_anything {precision}",
            partial(MetaImageEncoder, parameters, precision, device),
            ours=False,
        )
        for precision in precisions
    ]


class MetaImageEncoder:
    """Meta's ``ImageEncoderViT``, eager; an ``ImageEncoder``.

    Raises:
        SamtrtError: the ``segment_anything`` package is not installed.
    """

    def __init__(self, parameters: Parameters, precision: str, device: torch.device) -> None:
        self.img_size = parameters.encoder_config.img_size
        self.device = device
        self.computed_by = f"segment_anything {precision}, torch {torch.__version__}"
        self._dtype = DTYPES[precision]
        module = meta_module(parameters).to(device=device, dtype=self._dtype)
        self._module: Callable[..., Tensor] = module

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        # TF32, which torch allows itself in convolutions, is not fp32.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output: Tensor = self._module(x.to(self._dtype))
        return output.float()


def meta_module(parameters: Parameters) -> torch.nn.Module:
    """Meta's ``ImageEncoderViT`` with these parameters, fp32 on the CPU, in eval mode.

    Raises:
        SamtrtError: the ``segment_anything`` package is not installed.
    """
    module = meta_image_encoder(parameters.encoder_config)
    state = {name: torch.from_numpy(array) for name, array in parameters.encoder().items()}
    module.load_state_dict(state, assign=True)
    return module.float().requires_grad_(False)  # parameters may be kept in halves


def meta_decoder(parameters: Parameters) -> Decode:
    """Meta's prompt encoder and mask decoder in fp32 on the CPU; all four masks of a prompt.

    Raises:
        SamtrtError: the ``segment_anything`` package is not installed.
    """
    sam = meta_sam(parameters.encoder_config)
    sam.image_encoder = torch.nn.Identity()
    state = {name: torch.from_numpy(array) for name, array in parameters.decoder().items()}
    sam.load_state_dict(state)
    image_pe = sam.prompt_encoder.get_dense_pe()

    @torch.inference_mode()
    def decode(picture: EmbeddedPicture, prompts: Prompts) -> Tensor:
        coords, labels = prompts.coords, prompts.labels
        is_box = labels[:, 0] == LABEL_BOX_TOP_LEFT
        side = 4 * parameters.encoder_config.grid_size
        masks = torch.empty(len(coords), 4, side, side)
        # Meta's prompt encoder takes boxes and points through different arguments.
        for chosen in (is_box, ~is_box):
            if not chosen.any():
                continue
            boxes = coords[chosen].flatten(1) if chosen is is_box else None
            points = None if chosen is is_box else (coords[chosen, :1], labels[chosen, :1])
            sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
            masks[chosen] = sam.mask_decoder.predict_masks(
                picture.features, image_pe, sparse, dense
            )[0]
        return masks

    return decode


def _runs_here(backend: str, precision: str) -> bool:
    if backend == "cpu":
        return precision == "fp32" or has_fast_bf16()
    # (fp8 runs from an engine only)
    return precision != "fp8" and why_not_cuda() is None

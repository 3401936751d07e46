"""The whole model in one object: image encoder, prompt encoder, mask decoder.

Its attributes are those of ``segment_anything.modeling.Sam`` that programs use, and
``sam_model_registry`` is called as Meta's is, so that a program changes its import and its model
line and nothing else.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from samtrt.checkpoints.config import (
    PIXEL_MEAN,
    PIXEL_STD,
    EncoderConfig,
    vit_b,
    vit_h,
    vit_l,
)
from samtrt.checkpoints.meta import read_parameters
from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.graphed import GraphedDecoder
from samtrt.decoders.modules import ModuleDecoder
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import Decoder
from samtrt.decoders.torch import TorchDecoder
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.accelerated import accelerate
from samtrt.encoders.choice import default_device
from samtrt.encoders.embedded import EmbeddedPicture, embed_frames, embed_pictures
from samtrt.encoders.engine import SIDECAR_FILE, read_engine_info
from samtrt.encoders.identity import ParametersIdentity
from samtrt.encoders.load import encoder_from_parameters, load_encoder
from samtrt.encoders.modules import LazyImageEncoder, MakeEncoder, ModelEncoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.encoders.watch import version_of
from samtrt.errors import EngineError, InputError
from samtrt.modeling.bound import trainable_encoder
from samtrt.modeling.image_encoder import build_image_encoder
from samtrt.modeling.layers import Layers, are_plain, touched_layer
from samtrt.modeling.mask_decoder import MaskDecoder
from samtrt.modeling.mask_decoder_hq import MaskDecoderHQ
from samtrt.modeling.prompt_encoder import PromptEncoder
from samtrt.modeling.prompted_decoder import (
    PromptedMaskDecoder,
    build_mask_decoder,
    new_mask_decoder,
)
from samtrt.pictures.transforms import (
    MASK_THRESHOLD,
    Mark,
    normalize_and_pad,
    postprocess_masks,
    unmeasured,
)
from samtrt.torch_state import as_written

if TYPE_CHECKING:
    from typing_extensions import Self

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Sam(nn.Module):
    """A SAM on one device, for any number of threads: the tree that Meta's ``Sam`` is.

    ``state_dict`` has Meta's keys. Submodules may be replaced, and then are what computes. The
    image encoder's runtime and the decoders' CUDA graphs are made at their first use and belong to
    the model: predictors and generators share them, and a move gives their memory back.

    Args:
        image_encoder: an ``ImageEncoderViT``, which ``accelerate`` was called on or not; a
            ``LazyImageEncoder``, which has no parameters; or any module that is called as they are.
        prompt_encoder, mask_decoder: ours, or modules that are called as Meta's.
        pixel_mean, pixel_std: what a picture's channels are normalised by, in 0…255.
        parameters_sha256: of the parameter set that the modules have; empty where not known.
        note: what a user must know of it (``Parameters.note``).
    """

    mask_threshold: float = MASK_THRESHOLD
    image_format: str = "RGB"
    # (Modules of ours, or others that are called as they are.)
    image_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        parameters_sha256: str = "",
        note: str = "",
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            buffer = torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.note = note
        self._forget()
        self._identity = ParametersIdentity(self, parameters_sha256)

    def _forget(self) -> None:
        """Starts without graphs."""
        self._lock = threading.RLock()
        self._graphed: dict[torch.dtype, GraphedDecoder] = {}
        self._normalised: tuple[Any, str] = (None, "")
        self._untouched: Layers | None = None  # the decoder's, when they were last walked through

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    @property
    def img_size(self) -> int:
        """Side S of the model's square frame, in pixels."""
        found = getattr(self.image_encoder, "img_size", None)
        return found if isinstance(found, int) else int(self.prompt_encoder.input_image_size[0])

    @property
    def decoder(self) -> PromptedMaskDecoder:
        """Prompt encoder and mask decoder in one, around the model's own modules."""
        return PromptedMaskDecoder(self.prompt_encoder, self.mask_decoder)

    @property
    def parameters_sha256(self) -> str:
        """Of the parameter set: the checkpoint's while nobody has changed it, else of what is there
        now. Reads all parameters."""
        return self._identity.sha256(self)

    @property
    def encoder(self) -> ImageEncoder:
        """The image encoder as an ``ImageEncoder``, whatever module it is."""
        return ModelEncoder(self.image_encoder, self.img_size, self.device, self._remark())

    def _remark(self) -> str:
        """Says so where pictures are normalised otherwise than by Meta's statistics."""
        buffers = self.pixel_mean, self.pixel_std
        key = [(buffer.data_ptr(), version_of(buffer)) for buffer in buffers]
        if self._normalised[0] != key:
            found = [buffer.flatten().tolist() for buffer in buffers]
            meta = [
                torch.tensor(values, dtype=torch.float32, device="cpu").tolist()
                for values in (PIXEL_MEAN, PIXEL_STD)
            ]
            self._normalised = (key, "" if found == meta else f", pixels by {found}")
        return self._normalised[1]

    @property
    def computed_by(self) -> str:
        """What embeddings are computed by: the encoder (made, if it is not yet) and parameters."""
        return f"{self.encoder.computed_by}, parameters {self.parameters_sha256}"

    def embed(self, image: np.ndarray, mark: Mark = unmeasured) -> EmbeddedPicture:
        """Encodes a picture [H, W, 3] uint8 RGB; see ``encoders.embedded.embed_pictures``."""
        return self.embed_pictures([image], mark)[0]

    def embed_pictures(
        self, images: Sequence[np.ndarray], mark: Mark = unmeasured
    ) -> list[EmbeddedPicture]:
        """Encodes pictures [H, W, 3] uint8 RGB of any sizes as one batch, or none."""
        self._require_own_process()
        if not images:
            return []
        statistics = self.pixel_mean, self.pixel_std
        return self._identified(embed_pictures(self.encoder, images, mark, statistics))

    def _identified(self, pictures: list[EmbeddedPicture]) -> list[EmbeddedPicture]:
        """With the parameters that the encoder has; a digest of them after each change."""
        known = self._identity.known(self) or self._identity.sha256(self)
        return [replace(picture, parameters_sha256=known) for picture in pictures]

    def embed_resized(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, ...]]
    ) -> list[EmbeddedPicture]:
        """Encodes pictures that ``ResizeLongestSide`` has resized already as one batch, or none.

        Args:
            images: [1, 3, h, w] RGB each, 0…255, the long side ``img_size`` pixels.
            original_sizes: (H, W) of each before it was resized.

        Raises:
            InputError: another shape.
        """
        self._require_own_process()
        if not images:
            return []
        for image in images:
            shape = tuple(image.shape)
            if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != self.img_size:
                raise InputError(
                    f"a resized picture is [1, 3, h, w] with a long side of {self.img_size}, got "
                    f"{list(shape)}; resize it with ResizeLongestSide({self.img_size})"
                )
        with as_written():
            frames = torch.cat([self.preprocess(image) for image in images])
        sizes = [(image.shape[2], image.shape[3]) for image in images]
        originals = [(size[0], size[1]) for size in original_sizes]
        return self._identified(embed_frames(self.encoder, frames, sizes, originals))

    def get_decoder(self, precision: str = "auto") -> Decoder:
        """The mask decoder that predictors and generators of this model share.

        Args:
            precision: ``"fp16"`` or ``"bf16"``, with CUDA graphs on a GPU; ``"fp32"``, the modules
                as they are; ``"auto"``, fp16 on a GPU and the modules elsewhere.

        Raises:
            InputError: another precision.
            EngineError: CUDA was started before this process was forked.
        """
        self._require_own_process()
        if precision not in ("auto", "fp32", *_HALF):
            raise InputError(
                f"decoder_precision is {precision!r}, expected 'auto', 'fp16', 'bf16' or 'fp32'"
            )
        is_ours = are_plain(PromptEncoder, self.prompt_encoder) and any(
            are_plain(kind, self.mask_decoder) for kind in (MaskDecoder, MaskDecoderHQ)
        )
        if precision in _HALF or (precision == "auto" and self.device.type == "cuda"):
            touched = self._touched_layer() if is_ours else "mask_decoder"
            if touched is None:
                return self._graphed_decoder(_HALF.get(precision, torch.float16))
            if precision != "auto":
                raise InputError(
                    f"{touched} was replaced or hooked, and its own code computes in its own "
                    f"precision; take decoder_precision='auto' in place of {precision!r}"
                )
        if not is_ours:
            return ModuleDecoder(self.prompt_encoder, self.mask_decoder, self.img_size, self.note)
        return TorchDecoder(self.decoder, self._identity.known(self), self.note)

    def _touched_layer(self) -> str | None:
        """A layer of the decoder that was replaced or hooked; asked before each call."""
        parts = self.prompt_encoder, self.mask_decoder
        seen = self._untouched
        if seen is not None and seen.are_of(*parts) and seen.are_untouched():
            return None
        layers = Layers(*parts)  # before the walk: a change meanwhile is seen by either
        found = touched_layer(self.decoder)
        self._untouched = layers if found is None else None
        return found

    def _graphed_decoder(self, dtype: torch.dtype) -> GraphedDecoder:
        with self._lock:
            found = self._graphed.get(dtype)
            if found is None or not found.is_of(self.prompt_encoder, self.mask_decoder):
                if found is not None:
                    found.release()
                found = GraphedDecoder(self.decoder, dtype, self._identity.known(self), self.note)
                self._graphed[dtype] = found
            return found

    def _require_own_process(self) -> None:
        if self.device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise EngineError(
                "this process was forked from one that uses CUDA, which works in neither then; "
                "start it by spawn: multiprocessing.set_start_method('spawn')"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """What ``to``, ``cpu``, ``half`` and their like come down to."""
        with self._lock, torch.inference_mode(False):
            before, dtype = self.device, self.pixel_mean.dtype
            known = self._identity.known(self, thoroughly=True)
            super()._apply(fn, recurse)
            if self.device != before:
                for decoder in self._graphed.values():
                    decoder.release()
            if self.pixel_mean.dtype != dtype:
                known = ""  # rounded
            self._identity = ParametersIdentity(self, known)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without graphs and locks, which a copy or another process makes for itself."""
        known = self._identity.known(self, thoroughly=True)
        transient = ("_lock", "_graphed", "_untouched")
        state = {name: value for name, value in self.__dict__.items() if name not in transient}
        return {**state, "_identity": known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        self._identity = ParametersIdentity(self, state["_identity"])

    @torch.no_grad()
    def forward(
        self, batched_input: list[dict[str, Any]], multimask_output: bool
    ) -> list[dict[str, Tensor]]:
        """Masks of several pictures, each with its prompts; as Meta's ``Sam.forward``.

        The mask decoder computes in the precision of its modules, fp32 unless they were changed.

        Args:
            batched_input: for each picture a dict with ``image`` [3, h, w] (resized by
                ``ResizeLongestSide``), ``original_size`` (H, W) and, each optional,
                ``point_coords`` [B, N, 2] with ``point_labels`` [B, N], ``boxes`` [B, 4] and
                ``mask_inputs`` [B, 1, S/4, S/4], coordinates in the model's frame.

        Returns:
            For each picture ``masks`` bool [B, C, H, W], ``iou_predictions`` [B, C] and
            ``low_res_logits`` [B, C, S/4, S/4].

        Raises:
            InputError: a dict without a picture or its size, a picture of another shape, or what
                ``Prompts.from_tensors`` refuses.
        """
        for record in batched_input:
            if missing := {"image", "original_size"} - record.keys():
                raise InputError(f"a picture's dict has no {' and no '.join(sorted(missing))}")
        images = [record["image"][None] for record in batched_input]
        sizes = [record["original_size"] for record in batched_input]
        decode = self.get_decoder("fp32")
        outputs = []
        pictures = self.embed_resized(images, sizes)
        for record, picture in zip(batched_input, pictures, strict=True):
            prompts = Prompts.from_tensors(
                picture,
                record.get("point_coords"),
                record.get("point_labels"),
                record.get("boxes"),
                record.get("mask_inputs"),
            )
            low_res, scores = decode(picture, prompts, multimask_output)
            outputs.append(
                {
                    "masks": cut_out(low_res, picture, self.mask_threshold),
                    "iou_predictions": scores,
                    "low_res_logits": low_res,
                }
            )
        return outputs

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalises and pads resized pictures [B, 3, h, w] → [B, 3, S, S] float32."""
        statistics = self.pixel_mean, self.pixel_std
        return normalize_and_pad(x.to(self.device), self.img_size, statistics)

    def postprocess_masks(
        self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor:
        """Mask logits [B, C, S/4, S/4] → logits [B, C, H, W] at ``original_size``."""
        height, width = input_size
        rows, columns = original_size
        return postprocess_masks(masks, (height, width), (rows, columns), self.img_size)


def load_sam(
    path: str | Path,
    decoder: str | Path | None = None,
    backend: str = "auto",
    device: torch.device | str | None = None,
    precision: str = "auto",
) -> Sam:
    """Loads a model from an engine folder, a parameter folder or a checkpoint.

    The image encoder is made at once, so that what cannot be used here is refused here.

    Args:
        path: a folder made by ``samtrt build`` or by ``samtrt convert``, or a checkpoint: Meta's
            ``.pth``, Hugging Face's folder or file (``checkpoints.meta.read_checkpoint``).
        decoder: parameter folder or checkpoint with the mask decoder, for an engine folder, which
            holds only the image encoder; None otherwise.
        backend: ``"auto"``, ``"tensorrt"``, ``"cuda"`` or ``"cpu"``; see ``load_encoder``.
        device: where to compute; by default a GPU where there is one and the backend uses it.
        precision: of an encoder made from parameters, ``"fp16"``, ``"bf16"``, ``"fp32"`` or
            ``"auto"`` (see ``encoder_from_parameters``); an engine has its own, and ``"fp8"`` is
            an engine's only.

    Raises:
        CheckpointError: parameters that are missing, damaged or not a SAM's.
        EngineError: an engine that cannot be used here, or a backend that is not there.
    """
    path = Path(path)
    if not (path / SIDECAR_FILE).is_file():
        if decoder is not None:
            raise EngineError(
                f"{path} is not an engine folder, and its parameters have a mask decoder of their "
                "own; leave `decoder` out, or give an engine folder"
            )
        return _ready(sam_from_parameters(read_parameters(path), backend, device, precision))
    if decoder is None:
        raise EngineError(
            f"{path} holds an image encoder and no mask decoder; "
            "give the parameter folder it was built from as `decoder`"
        )
    info = read_engine_info(path)
    parameters = read_parameters(Path(decoder))
    if info.config != parameters.encoder_config:
        raise EngineError(
            f"the engine in {path} and the parameters in {decoder} are of different sizes; "
            "build the engine again from these parameters"
        )
    return _ready(
        _assemble(
            # The engine refuses to work with another parameter set.
            partial(load_encoder, path, backend, parameters_sha256=parameters.sha256),
            parameters,
            device or ("cpu" if info.backend == "cpu" else "cuda"),
        )
    )


def _ready(sam: Sam) -> Sam:
    """Makes the image encoder now: what cannot be used is refused when it is loaded."""
    _ = sam.encoder.computed_by
    return sam


def sam_from_parameters(
    parameters: Parameters,
    backend: str = "auto",
    device: torch.device | str | None = None,
    precision: str = "auto",
) -> Sam:
    """A model of parameters in memory; the arguments are ``load_sam``'s.

    Raises:
        CheckpointError: tensors that are not a SAM mask decoder's.
        EngineError: when the encoder is first used: a backend that needs an engine or is not here.
    """
    if device is None:
        device = default_device(backend)
    return _assemble(
        partial(encoder_from_parameters, parameters, backend, precision=precision),
        parameters,
        device,
    )


def _assemble(make_encoder: MakeEncoder, parameters: Parameters, device: torch.device | str) -> Sam:
    config = parameters.encoder_config
    encoder = LazyImageEncoder(make_encoder, config.img_size)
    return _with_decoder(encoder, parameters).to(device)


def _with_decoder(image_encoder: nn.Module, parameters: Parameters) -> Sam:
    decoder = build_mask_decoder(parameters.decoder(), parameters.encoder_config)
    return Sam(
        image_encoder,
        decoder.prompt_encoder.requires_grad_(),
        decoder.mask_decoder.requires_grad_(),
        parameters_sha256=parameters.sha256,
        note=parameters.note,
    ).eval()


_SIZES: dict[str, Callable[[], EncoderConfig]] = {
    "default": vit_h, "vit_h": vit_h, "vit_l": vit_l, "vit_b": vit_b
}  # fmt: skip


def _build(kind: str, checkpoint: str | Path | None = None) -> Sam:
    """Meta's ``build_sam…``: the model of a checkpoint, or with fresh parameters without one.

    As in Meta's code it starts on the CPU, in eval mode, and ``.to("cuda")`` moves it. Its image
    encoder is an ``ImageEncoderViT`` that ``accelerate`` was called on.
    """
    if checkpoint is None:
        config = _SIZES[kind]()
        encoder = accelerate(build_image_encoder(config))
        decoder = new_mask_decoder(config)
        note = "fresh parameters, never trained: its masks mean nothing"
        return Sam(encoder, decoder.prompt_encoder, decoder.mask_decoder, note=note).eval()
    parameters = read_parameters(Path(checkpoint))
    encoder = trainable_encoder(parameters.encoder_config, parameters.encoder())
    return _with_decoder(accelerate(encoder), parameters)


# Sizes are read from the checkpoint, so every name takes any checkpoint.
sam_model_registry: dict[str, Callable[..., Sam]] = {
    kind: partial(_build, kind) for kind in ("default", "vit_h", "vit_l", "vit_b")
}
build_sam = build_sam_vit_h = sam_model_registry["vit_h"]
build_sam_vit_l = sam_model_registry["vit_l"]
build_sam_vit_b = sam_model_registry["vit_b"]

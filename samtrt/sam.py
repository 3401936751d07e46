"""The whole model in one object: image encoder, prompt encoder, mask decoder.

Its attributes are those of ``segment_anything.modeling.Sam`` that programs use, and
``sam_model_registry`` is called as Meta's is, so that a program changes its import and its model
line and nothing else.
"""

import copy
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from samtrt.checkpoints.meta import read_parameters
from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.graphed import GraphedDecoder
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import Decoder
from samtrt.decoders.torch import TorchDecoder
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.choice import default_device
from samtrt.encoders.embedded import EmbeddedPicture, embed_frame, embed_picture
from samtrt.encoders.engine import SIDECAR_FILE, read_engine_info
from samtrt.encoders.load import encoder_from_parameters, load_encoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import CheckpointError, EngineError, InputError
from samtrt.modeling.mask_decoder import MaskDecoder, PromptedMaskDecoder, build_mask_decoder
from samtrt.modeling.prompt_encoder import PromptEncoder
from samtrt.pictures.transforms import (
    MASK_THRESHOLD,
    Mark,
    Size,
    normalize_and_pad,
    pixel_statistics,
    postprocess_masks,
    unmeasured,
)
from samtrt.torch_state import as_written

if TYPE_CHECKING:
    from typing_extensions import Self

MakeEncoder = Callable[[torch.device], ImageEncoder]

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Sam(nn.Module):
    """A SAM on one device, for any number of threads.

    The image encoder is made when it is first used and again after a move to another device, so
    ``sam_model_registry[…](checkpoint=…).to("cuda")`` never packs weights for the CPU. It and the
    decoders' CUDA graphs belong to the model: predictors and generators share them, and a move
    gives their memory back.

    Args:
        make_encoder: makes the image encoder for a device.
        decoder: the prompt encoder and mask decoder, on the device that the encoder will use.
        parameters_sha256: of the parameter set.
        note: what a user must know of it (``Parameters.note``).
    """

    mask_threshold: float = MASK_THRESHOLD
    image_format: str = "RGB"

    def __init__(
        self,
        make_encoder: MakeEncoder,
        decoder: PromptedMaskDecoder,
        parameters_sha256: str,
        note: str = "",
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.parameters_sha256 = parameters_sha256
        self.note = note
        self._make_encoder = make_encoder
        self._forget()

    def _forget(self) -> None:
        """Starts without an encoder and without graphs."""
        self._lock = threading.RLock()
        self._encoder: ImageEncoder | None = None
        self._encoder_device: torch.device | None = None
        self._graphed: dict[torch.dtype, GraphedDecoder] = {}

    @property
    def image_encoder(self) -> ImageEncoder:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        self._require_own_process()
        with self._lock:  # one encoder, however many threads ask first
            device = self.device
            if self._encoder is None or self._encoder_device != device:
                self._encoder = None  # the old one's memory goes first
                self._encoder = self._made(device)
                self._encoder_device = device
            return self._encoder

    def _made(self, device: torch.device) -> ImageEncoder:
        try:
            return self._make_encoder(device)
        except AttributeError as error:
            # Out of a property, nn.Module would take it for "no attribute image_encoder".
            raise RuntimeError(f"the image encoder cannot be made: {error}") from error

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Points, boxes and masks to embeddings, with the signature of Meta's module."""
        return self.decoder.prompt_encoder

    @property
    def mask_decoder(self) -> MaskDecoder:
        """Embeddings to masks, with the signature of Meta's module."""
        return self.decoder.mask_decoder

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.decoder.prompt_encoder.no_mask_embed.weight.device

    @property
    def img_size(self) -> int:
        """Side S of the model's square frame, in pixels; known before the encoder is made."""
        return self.decoder.prompt_encoder.input_image_size[0]

    @property
    def pixel_mean(self) -> Tensor:
        """What is subtracted from a picture's channels: [3, 1, 1] float32 in 0…255."""
        return pixel_statistics(self.device)[0].clone()

    @property
    def pixel_std(self) -> Tensor:
        """What a picture's channels are divided by: [3, 1, 1] float32."""
        return pixel_statistics(self.device)[1].clone()

    @property
    def computed_by(self) -> str:
        """What embeddings are computed by: the encoder (made, if it is not yet) and parameters."""
        return f"{self.image_encoder.computed_by}, parameters {self.parameters_sha256}"

    def embed(self, image: np.ndarray, mark: Mark = unmeasured) -> EmbeddedPicture:
        """Encodes a picture [H, W, 3] uint8 RGB; see ``embed_picture``."""
        return embed_picture(self.image_encoder, image, self.parameters_sha256, mark)

    def embed_resized(self, image: Tensor, original_size: Size) -> EmbeddedPicture:
        """Encodes a picture that ``ResizeLongestSide`` has resized already.

        Args:
            image: [1, 3, h, w] RGB, 0…255, its long side ``img_size`` pixels.
            original_size: (H, W) before it was resized.

        Raises:
            InputError: another shape.
        """
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != self.img_size:
            raise InputError(
                f"a resized picture is [1, 3, h, w] with a long side of {self.img_size}, got "
                f"{list(shape)}; resize it with ResizeLongestSide({self.img_size})"
            )
        with as_written():
            frame = self.preprocess(image)
        size = (original_size[0], original_size[1])
        return embed_frame(
            self.image_encoder, frame, (shape[2], shape[3]), size, self.parameters_sha256
        )

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
        if precision == "auto":
            precision = "fp16" if self.device.type == "cuda" else "fp32"
        if precision == "fp32":
            return TorchDecoder(self.decoder, self.parameters_sha256, self.note)
        if precision not in _HALF:
            raise InputError(
                f"decoder_precision is {precision!r}, expected 'auto', 'fp16', 'bf16' or 'fp32'"
            )
        dtype = _HALF[precision]
        with self._lock:
            if dtype not in self._graphed:
                self._graphed[dtype] = GraphedDecoder(
                    self.decoder, dtype, self.parameters_sha256, self.note
                )
            return self._graphed[dtype]

    def _require_own_process(self) -> None:
        if self.device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise EngineError(
                "this process was forked from one that uses CUDA, which works in neither then; "
                "start it by spawn: multiprocessing.set_start_method('spawn')"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """What ``to``, ``cpu``, ``half`` and their like come down to."""
        with self._lock, torch.inference_mode(False):
            before = self.device
            super()._apply(fn, recurse)
            if self.device != before:
                self._encoder = None
                for decoder in self._graphed.values():
                    decoder.release()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without encoder, graphs and locks, which a copy or another process makes for itself."""
        transient = ("_lock", "_encoder", "_encoder_device", "_graphed")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sam":
        # Both make their encoders of the same parameters, which nobody writes to.
        memo[id(self._make_encoder)] = self._make_encoder
        copied = self.__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

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
        decode = self.get_decoder("fp32")
        outputs = []
        for record in batched_input:
            if missing := {"image", "original_size"} - record.keys():
                raise InputError(f"a picture's dict has no {' and no '.join(sorted(missing))}")
            picture = self.embed_resized(record["image"][None], record["original_size"])
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
        return normalize_and_pad(x.to(self.device), self.img_size)

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
            ``"auto"`` (see ``encoder_from_parameters``); an engine has its own.

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
    _ = sam.image_encoder
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
    decoder = build_mask_decoder(parameters.decoder(), parameters.encoder_config)
    sam = Sam(make_encoder, decoder, parameters.sha256, parameters.note)
    return sam.to(device).eval()


def _build(kind: str, checkpoint: str | Path | None = None) -> Sam:
    if checkpoint is None:
        raise CheckpointError(
            f"sam_model_registry[{kind!r}] needs checkpoint=…, a SAM checkpoint or a parameter "
            "folder; a model without parameters can be made with random_parameters"
        )
    parameters = read_parameters(Path(checkpoint))
    # As in Meta's code the model starts on the CPU, and `.to("cuda")` moves it.
    return _assemble(partial(_drop_in_encoder, parameters), parameters, "cpu")


def _drop_in_encoder(parameters: Parameters, device: torch.device) -> ImageEncoder:
    # Programs written for Meta's fp32 get masks that agree with it; the CPU's bf16 is faster and
    # has to be asked for (`load_sam`).
    precision = "fp32" if device.type == "cpu" else "auto"
    return encoder_from_parameters(parameters, "auto", device, precision)


# Sizes are read from the checkpoint, so every name takes any checkpoint.
sam_model_registry: dict[str, Callable[..., Sam]] = {
    kind: partial(_build, kind) for kind in ("default", "vit_h", "vit_l", "vit_b")
}
build_sam = build_sam_vit_h = sam_model_registry["vit_h"]
build_sam_vit_l = sam_model_registry["vit_l"]
build_sam_vit_b = sam_model_registry["vit_b"]

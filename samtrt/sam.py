"""The whole model in one object: image encoder, prompt encoder, mask decoder.

Its attributes are those of ``segment_anything.modeling.Sam`` that programs use, and
``sam_model_registry`` is called as Meta's is, so that a program changes its import and its model
line and nothing else.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import Parameters, load_parameters
from samtrt.encoders.choice import default_device
from samtrt.encoders.engine import SIDECAR_FILE, read_engine_info
from samtrt.encoders.load import encoder_from_parameters, load_encoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import CheckpointError, EngineError
from samtrt.modeling.mask_decoder import (
    MaskDecoder,
    PromptedMaskDecoder,
    build_mask_decoder,
    select_masks,
)
from samtrt.modeling.prompt_encoder import PromptEncoder, prompt_points
from samtrt.pictures.transforms import MASK_THRESHOLD, normalize_and_pad, postprocess_masks

MakeEncoder = Callable[[torch.device], ImageEncoder]


class Sam(nn.Module):
    """A SAM on one device.

    The image encoder is made when it is first used and again after a move to another device, so
    ``sam_model_registry[…](checkpoint=…).to("cuda")`` never packs weights for the CPU.

    Args:
        make_encoder: makes the image encoder for a device.
        decoder: the prompt encoder and mask decoder, on the device that the encoder will use.
        engine_sha256: what embeddings are bound to; see ``samtrt.masks.embedding``.
    """

    mask_threshold: float = MASK_THRESHOLD
    image_format: str = "RGB"

    def __init__(
        self, make_encoder: MakeEncoder, decoder: PromptedMaskDecoder, engine_sha256: str
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.engine_sha256 = engine_sha256
        self._make_encoder = make_encoder
        self._encoder: ImageEncoder | None = None
        self._encoder_device: torch.device | None = None

    @property
    def image_encoder(self) -> ImageEncoder:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        device = self.device
        if self._encoder is None or self._encoder_device != device:
            self._encoder = None  # the old one's memory goes first
            self._encoder = self._make_encoder(device)
            self._encoder_device = device
        return self._encoder

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

    @torch.no_grad()
    def decode(
        self,
        features: Tensor,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        mask_input: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Prompts on one embedded picture → mask logits and predicted IoUs.

        Args:
            features: [1, 256, S/16, S/16].
            points: coords [B, N, 2] in pixels of the model's frame and labels [B, N], or None.
            boxes: [B, 4] in the same frame, or None.
            mask_input: [B, 1, S/4, S/4] logits of an earlier call, or None.

        Returns:
            Logits [B, C, S/4, S/4] and predicted IoUs [B, C]; C is 3 for ``multimask_output``,
            otherwise 1.
        """
        coords, labels = prompt_points(points, boxes)
        if coords is None or labels is None:
            batch = 1 if mask_input is None else len(mask_input)
            coords, labels = features.new_zeros(batch, 0, 2), features.new_zeros(batch, 0)
        masks, scores = self.decoder(features, coords, labels, mask_input)
        return select_masks(masks, scores, multimask_output)

    @torch.no_grad()
    def forward(
        self, batched_input: list[dict[str, Any]], multimask_output: bool
    ) -> list[dict[str, Tensor]]:
        """Masks of several pictures, each with its prompts; as Meta's ``Sam.forward``.

        Args:
            batched_input: for each picture a dict with ``image`` [3, h, w] (resized by
                ``ResizeLongestSide``), ``original_size`` (H, W) and, each optional,
                ``point_coords`` [B, N, 2] with ``point_labels`` [B, N], ``boxes`` [B, 4] and
                ``mask_inputs`` [B, 1, S/4, S/4], coordinates in the model's frame.

        Returns:
            For each picture ``masks`` bool [B, C, H, W], ``iou_predictions`` [B, C] and
            ``low_res_logits`` [B, C, S/4, S/4].
        """
        outputs = []
        for record in batched_input:
            points = None
            if "point_coords" in record:
                points = (record["point_coords"], record["point_labels"])
            low_res, scores = self.decode(
                self.image_encoder(self.preprocess(record["image"][None])),
                points,
                record.get("boxes"),
                record.get("mask_inputs"),
                multimask_output,
            )
            logits = self.postprocess_masks(
                low_res, record["image"].shape[-2:], record["original_size"]
            )
            outputs.append(
                {
                    "masks": logits > self.mask_threshold,
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
    """Loads a model from an engine folder, a parameter folder or a checkpoint of Meta's.

    The image encoder is made at once, so that what cannot be used here is refused here.

    Args:
        path: a folder made by ``build.py`` or by ``params_convert.py``, or a ``.pth`` file.
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
                "own; leave `decoder` out, or give an engine folder made by build.py"
            )
        return _ready(sam_from_parameters(_read_parameters(path), backend, device, precision))
    if decoder is None:
        raise EngineError(
            f"{path} holds an image encoder and no mask decoder; "
            "give the parameter folder it was built from as `decoder`"
        )
    info = read_engine_info(path)
    parameters = _read_parameters(Path(decoder))
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
            info.engine_sha256,
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
        hashlib.sha256(f"{parameters.sha256} {backend} {precision}".encode()).hexdigest(),
    )


def _assemble(
    make_encoder: MakeEncoder, parameters: Parameters, device: torch.device | str, sha256: str
) -> Sam:
    decoder = build_mask_decoder(parameters.decoder(), parameters.encoder_config)
    return Sam(make_encoder, decoder.to(device), sha256).eval()


def _read_parameters(path: Path) -> Parameters:
    if path.is_dir() or (not path.exists() and not path.suffix):
        return load_parameters(path)
    return read_checkpoint(path)


def _build(kind: str, checkpoint: str | Path | None = None) -> Sam:
    if checkpoint is None:
        raise CheckpointError(
            f"sam_model_registry[{kind!r}] needs checkpoint=…, a SAM checkpoint or a parameter "
            "folder; a model without parameters can be made with random_parameters"
        )
    parameters = _read_parameters(Path(checkpoint))
    # As in Meta's code the model starts on the CPU, and `.to("cuda")` moves it.
    fingerprint = f"{parameters.sha256} drop-in"
    sha256 = hashlib.sha256(fingerprint.encode()).hexdigest()
    return _assemble(partial(_drop_in_encoder, parameters), parameters, "cpu", sha256)


def _drop_in_encoder(parameters: Parameters, device: torch.device) -> ImageEncoder:
    # Programs written for Meta's fp32 get masks that agree with it; the CPU's bf16 is faster and
    # has to be asked for (`load_sam`).
    precision = "fp32" if device.type == "cpu" else "auto"
    return encoder_from_parameters(parameters, "auto", device, precision)


# Sizes are read from the checkpoint, so every name takes any checkpoint.
sam_model_registry: dict[str, Callable[..., Sam]] = {
    kind: partial(_build, kind) for kind in ("default", "vit_h", "vit_l", "vit_b")
}

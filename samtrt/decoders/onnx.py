"""Mask decoder files in ONNX Runtime."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.decoders.export import METADATA_NOTE, METADATA_PARAMETERS
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import check_fits, no_masks
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import EngineError
from samtrt.modeling.mask_decoder import select_masks

_REQUIRED_INPUTS = {
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
}
_ORIG_IM_SIZE = "orig_im_size"  # only in decoders that Meta's export_onnx_model.py made
_OUTPUTS = ["low_res_masks", "iou_predictions"]


class OnnxDecoder:
    """A mask decoder file in ONNX Runtime, on CUDA where its provider is there; a ``Decoder``.

    Takes the files of ``export_decoder`` and of Meta's ``export_onnx_model.py``. Meta's have a
    prompt batch of 1, so several prompts are decoded one after the other, and their own upscaled
    ``masks`` are never asked for. Answers are on the picture's device.

    Raises:
        EngineError: the file is missing, damaged, or is not a SAM mask decoder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnxruntime as ort

        self.path = Path(path)
        if not self.path.is_file():
            raise EngineError(
                f"no mask decoder at {self.path}; make one with export_decoder.py --output "
                f"{self.path}"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        try:
            self.session = ort.InferenceSession(self.path, options, _providers(ort))
        except Exception as error:  # its exceptions share no base class of their own
            reason = " ".join(str(error).split())[:200]
            raise EngineError(
                f"{self.path} cannot be opened by ONNX Runtime {ort.__version__} ({reason}); "
                "export the decoder again with export_decoder.py"
            ) from error
        self.provider: str = self.session.get_providers()[0]

        self._inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = {value.name: value for value in self.session.get_outputs()}
        self._check_names(outputs)
        _, _, mask_side, _ = self._inputs["mask_input"].shape
        self._batched = not isinstance(self._inputs["point_coords"].shape[0], int)
        self._grid = mask_side // 4
        self.img_size: int = 16 * self._grid  # SAM's patches have 16 pixels
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.parameters_sha256 = metadata.get(METADATA_PARAMETERS, "")
        self.note = metadata.get(METADATA_NOTE, "")
        # Only what leads to the two outputs is computed, not Meta's masks at the picture's size.
        self._run_options = ort.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        self.num_masks: int = self._count_masks(outputs["iou_predictions"].shape[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxDecoder, (self.path,)  # a session cannot be copied; it is opened again

    def __str__(self) -> str:
        return f"ONNX Runtime, {self.provider.removesuffix('ExecutionProvider')}"

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        check_fits(self, picture.img_size, multimask_output)
        masks, scores = self.all_masks(picture, prompts)
        if self.num_masks == 1:
            return masks, scores
        return select_masks(masks, scores, multimask_output)

    def all_masks(self, picture: EmbeddedPicture, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """All masks of each prompt: logits [B, M, 4h, 4w] and predicted IoUs [B, M],
        M = ``num_masks``."""
        check_fits(self, picture.img_size, False)
        if tuple(picture.features.shape) != (1, 256, self._grid, self._grid):
            raise EngineError(
                f"the mask decoder {self.path} takes an embedding of 256×{self._grid}×"
                f"{self._grid}, and got {list(picture.features.shape)}; take the decoder and the "
                "engine of the same model"
            )
        if not len(prompts):
            return no_masks(picture, self.num_masks, picture.features.device)
        return self._answers(picture.features, prompts)

    def _answers(self, features: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        size = len(prompts) if self._batched else 1
        embedding = _in_host_memory(features)
        results = [self._run(embedding, part) for part in prompts.split(size)]
        masks, scores = (np.concatenate(parts) for parts in zip(*results, strict=True))
        device = features.device
        return torch.from_numpy(masks).to(device), torch.from_numpy(scores).to(device)

    def _run(self, embedding: np.ndarray, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        mask, side = prompts.mask_input, 4 * self._grid
        feed = {
            "image_embeddings": embedding,
            "point_coords": _in_host_memory(prompts.coords),
            "point_labels": _in_host_memory(prompts.labels),
            # As many masks as prompts always: in files of earlier versions both have one symbolic
            # size, and ONNX Runtime reads past the end of a single mask.
            "mask_input": np.zeros((len(prompts), 1, side, side), np.float32)
            if mask is None
            else _in_host_memory(mask),
            "has_mask_input": np.array([mask is not None], np.float32),
        }
        if _ORIG_IM_SIZE in self._inputs:
            feed[_ORIG_IM_SIZE] = np.array([self.img_size, self.img_size], np.float32)
        masks, ious = self.session.run(_OUTPUTS, feed, self._run_options)
        return masks, ious

    def _check_names(self, outputs: dict[str, Any]) -> None:
        names = set(self._inputs)
        fits = names - {_ORIG_IM_SIZE} == _REQUIRED_INPUTS and outputs.keys() >= set(_OUTPUTS)
        # With --return-extra-metrics Meta's script gives that name to the stability scores.
        if not fits or len(outputs["low_res_masks"].shape) != 4:
            raise EngineError(
                f"{self.path} is not a SAM mask decoder: it has inputs {sorted(names)} and outputs "
                f"{sorted(outputs)}; expected those of export_decoder.py, or of Meta's "
                "export_onnx_model.py without --return-extra-metrics"
            )

    def _count_masks(self, declared: Any) -> int:
        if isinstance(declared, int):
            return declared

        # Meta's files do not say, so one prompt is decoded to see.
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device="cpu")

        features = zeros(1, 256, self._grid, self._grid)
        _, scores = self._answers(features, Prompts(zeros(1, 2, 2), zeros(1, 2)))
        return scores.shape[1]


def _providers(ort: Any) -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in ort.get_available_providers()]


def _in_host_memory(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()

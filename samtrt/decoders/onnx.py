"""Mask decoder files in ONNX Runtime."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.checkpoints.parameters import CONFIG_FILE
from samtrt.decoders.contract import (
    INPUT_NAMES,
    METADATA_NOTE,
    METADATA_PARAMETERS,
    ORIG_IM_SIZE,
    OUTPUT_NAMES,
    PRODUCER,
    SEALED_VERSION,
)
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import check_fits, no_masks
from samtrt.decoders.sealed import is_sealed
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import EngineError
from samtrt.files import read_whole
from samtrt.hints import command
from samtrt.modeling.mask_decoder import select_masks

_OUTPUTS = list(OUTPUT_NAMES)  # those that every contract has


class OnnxDecoder:
    """A mask decoder file in ONNX Runtime, on CUDA where its provider is there; a ``Decoder``.

    Takes the files of ``export_decoder`` and of Meta's ``export_onnx_model.py``. Meta's have a
    prompt batch of 1, so several prompts are decoded one after the other, and their own upscaled
    ``masks`` are never asked for. Answers are on the picture's device.

    Raises:
        EngineError: the file is missing, damaged, or is not a SAM mask decoder; when called, ONNX
            Runtime fails on it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnxruntime as ort

        self.path = Path(path)
        if not self.path.is_file():
            raise EngineError(
                f"no mask decoder at {self.path}; make one with `{self._export_command()}`"
            )
        self.session, is_ours = self._open(ort)
        self.provider: str = self.session.get_providers()[0]

        self._inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = {value.name: value for value in self.session.get_outputs()}
        mask_side = self._check_signature(outputs)
        self._batched = not isinstance(self._inputs["point_coords"].shape[0], int)
        self._grid = mask_side // 4
        self.img_size: int = 16 * self._grid  # SAM's patches have 16 pixels
        meta = self.session.get_modelmeta()
        if meta.producer_name == PRODUCER and meta.version >= SEALED_VERSION and not is_ours:
            raise self._damaged("its end is missing")
        metadata = meta.custom_metadata_map
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
        if ORIG_IM_SIZE in self._inputs:
            feed[ORIG_IM_SIZE] = np.array([self.img_size, self.img_size], np.float32)
        try:
            masks, ious = self.session.run(_OUTPUTS, feed, self._run_options)
        except Exception as error:  # they share no base class of their own
            raise EngineError(
                f"ONNX Runtime fails on the mask decoder {self.path} ({_reason(error)}); "
                f"export the decoder again with `{self._export_command()}`"
            ) from error
        return masks, ious

    def _open(self, ort: Any) -> tuple[Any, bool]:
        """A session, and whether the file ends in a digest, which then is that of its content."""
        options = ort.SessionOptions()
        options.log_severity_level = 4  # none: the exception says it
        try:
            content = read_whole(self.path)
            is_ours = is_sealed(content)
            # What was checked is what is used. Others' files may have weights in files beside them.
            source = bytes(content) if is_ours else self.path
            session = ort.InferenceSession(source, options, _providers(ort), enable_fallback=0)
        except Exception as error:  # ONNX Runtime's share no base class of their own
            raise self._damaged(_reason(error), ort.__version__) from error
        return session, is_ours

    def _damaged(self, reason: str, version: str = "") -> EngineError:
        return EngineError(
            f"{self.path} cannot be opened by ONNX Runtime{f' {version}' if version else ''} "
            f"({reason}); export the decoder again with `{self._export_command()}`"
        )

    def _export_command(self) -> str:
        """What writes the file, from the parameters that it lies among where it does."""
        params = self.path.parent if (self.path.parent / CONFIG_FILE).is_file() else "PARAMS"
        return command("export-decoder", "--params", params, "--output", self.path)

    def _check_signature(self, outputs: dict[str, Any]) -> int:
        """Side of the mask prompt, once inputs and outputs are those of a mask decoder."""
        names = set(self._inputs)
        fits = names - {ORIG_IM_SIZE} == set(INPUT_NAMES) and outputs.keys() >= set(_OUTPUTS)
        # With --return-extra-metrics Meta's script gives that name to the stability scores.
        if not fits or len(outputs["low_res_masks"].shape) != 4:
            raise EngineError(
                f"{self.path} is not a SAM mask decoder: it has inputs {sorted(names)} and outputs "
                f"{sorted(outputs)}; expected those of `samtrt export-decoder`, or of Meta's "
                "export_onnx_model.py without --return-extra-metrics"
            )
        shape = self._inputs["mask_input"].shape
        side = shape[-1] if len(shape) == 4 and shape[2] == shape[3] else None
        ranks = len(self._inputs["point_coords"].shape), len(outputs["iou_predictions"].shape)
        if not isinstance(side, int) or side < 4 or side % 4 or ranks != (3, 2):
            raise EngineError(
                f"{self.path} is not a SAM mask decoder: its mask_input is {shape}, expected "
                "[B, 1, 4h, 4h] for h×h image tokens; export the decoder again with "
                f"`{self._export_command()}`"
            )
        return side

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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _in_host_memory(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()

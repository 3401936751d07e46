"""The mask decoder as one ONNX file, parameters inside.

Tensor names are those of Meta's ``scripts/export_onnx_model.py``. Two things differ: the prompt
batch is dynamic as well as the number of points, and ``orig_im_size`` is left out, because
upscaling to the picture belongs to ``transforms.postprocess_masks``.
"""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.sealed import sealed
from samtrt.errors import SamtrtError
from samtrt.files import replacing
from samtrt.hints import install
from samtrt.modeling.mask_decoder import PromptedMaskDecoder, build_mask_decoder

INPUT_NAMES = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUT_NAMES = ("low_res_masks", "iou_predictions")
OPSET = 18

# Keys of the file's metadata, by which a decoder is held against an encoder engine.
METADATA_PARAMETERS = "samtrt.parameters_sha256"
METADATA_NOTE = "samtrt.note"

PRODUCER = "samtrt"
SEALED_VERSION = 1  # from this ``model_version`` on, files of ours end in a digest


class ExportedDecoder(nn.Module):
    """The decoder as it is exported, with Meta's choice of a single mask if asked for.

    That choice raises the score of mask 0 by 1000 · (N − 2.5), N being the number of points with
    padding and box corners: mask 0 for three points and more, the best of masks 1…3 otherwise. A
    box alone counts as two points, so it gets one of masks 1…3, where Meta's PyTorch predictor
    (``multimask_output=False``) always answers with mask 0.
    """

    image_pe: Tensor

    def __init__(self, decoder: PromptedMaskDecoder, return_single_mask: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("image_pe", decoder.prompt_encoder.get_dense_pe())
        self.return_single_mask = return_single_mask

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As ``PromptedMaskDecoder``; a single mask is [B, 1, 4h, 4w] and [B, 1].

        ``mask_input`` is [B, 1, 4h, 4w], or [1, 1, 4h, 4w] for all prompts.
        """
        # A size of its own, and an index that picks the one mask or each prompt's: were both
        # sizes one symbol, ONNX Runtime would take a single mask for as many as there are prompts.
        prompt = torch.arange(point_labels.shape[0], device=point_labels.device)
        num_masks = torch.ones_like(mask_input[:, 0, 0, 0]).sum()
        mask_input = mask_input[prompt * (num_masks > 1)]
        masks, iou_predictions = self.decoder.decode(
            image_embeddings,
            self.image_pe,
            point_coords,
            point_labels,
            mask_input,
            has_mask_input,
        )
        if not self.return_single_mask:
            return masks, iou_predictions
        first = torch.arange(iou_predictions.shape[1], device=masks.device) == 0
        # Counted in a tensor: the exporter cannot multiply by a symbolic size.
        num_points = torch.ones_like(point_labels).sum(dim=1, keepdim=True)
        score = iou_predictions + 1000.0 * (num_points - 2.5) * first
        best = score.argmax(dim=1)
        return masks[prompt, best].unsqueeze(1), iou_predictions[prompt, best].unsqueeze(1)


def export_decoder(
    parameters: Parameters, output: str | os.PathLike[str], return_single_mask: bool = False
) -> None:
    """Writes the mask decoder as an ONNX file, whole or not at all.

    Inputs, all float32, for B prompts of N points and a grid of h×w image tokens:
    ``image_embeddings`` [1, 256, h, w], ``point_coords`` [B, N, 2] in pixels of the model's frame,
    ``point_labels`` [B, N] (−1 padding, 0 background, 1 foreground, 2 and 3 a box's corners),
    ``mask_input`` [B, 1, 4h, 4w] or [1, 1, 4h, 4w], ``has_mask_input`` [1]. Outputs:
    ``low_res_masks`` [B, M, 4h, 4w] and ``iou_predictions`` [B, M], M being 4, or 1 with
    ``return_single_mask``.

    Raises:
        SamtrtError: the exporter's packages are missing, or the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401, what torch.onnx.export needs
    except ImportError as error:
        raise SamtrtError(
            f"{error.name} is not installed, and the export needs it; run `{install('export')}`"
        ) from error

    config = parameters.encoder_config
    decoder = build_mask_decoder(parameters.decoder(), config)
    model = ExportedDecoder(decoder, return_single_mask).eval()
    with replacing(output) as temporary:  # first, so that a bad name fails before the work
        proto = _to_onnx(model, config)
        metadata = {METADATA_PARAMETERS: parameters.sha256, METADATA_NOTE: parameters.note}
        onnx.helper.set_model_props(proto, {k: v for k, v in metadata.items() if v})
        onnx.checker.check_model(proto)
        temporary.write_bytes(sealed(proto.SerializeToString(deterministic=True)))


def _to_onnx(model: nn.Module, config: EncoderConfig) -> Any:
    """The model as an ``onnx.ModelProto`` that says nothing of the machine it was made on."""
    prompts, points, masks = (
        torch.export.Dim(name) for name in ("num_prompts", "num_points", "num_masks")
    )
    grid, side = config.grid_size, 4 * config.grid_size
    # Neither dynamic size is 1: the exporter would take a 1 for a constant.
    example = (
        torch.zeros(1, config.out_chans, grid, grid),
        torch.zeros(2, 5, 2),
        torch.zeros(2, 5),
        torch.zeros(3, 1, side, side),
        torch.ones(1),
    )
    with _quiet():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUT_NAMES,
            output_names=OUTPUT_NAMES,
            dynamic_shapes=({}, {0: prompts, 1: points}, {0: prompts, 1: points}, {0: masks}, {}),
            verbose=False,
        )
    assert program is not None  # torch returns None only for the old exporter
    proto = program.model_proto
    _strip_traces(proto)
    proto.producer_name, proto.producer_version = PRODUCER, ""
    proto.model_version = SEALED_VERSION
    return proto


def _strip_traces(proto: Any) -> None:
    """Drops what the exporter notes of this machine: source lines and file names."""
    graph = proto.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.metadata_props[:]
    proto.doc_string = graph.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and internal warnings off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

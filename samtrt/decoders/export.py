"""The mask decoder as one ONNX file, parameters inside.

The prompt batch is dynamic as well as the number of points; inputs and outputs are those of one of
the contracts (``contract.py``).
"""

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import Parameters
from samtrt.checkpoints.shapes import HQ_TOKEN
from samtrt.decoders.contract import (
    BOX_NAMES,
    CONTRACTS,
    EXTRA_METRICS,
    INPUT_NAMES,
    INTERM_EMBEDDINGS,
    META_OUTPUT_NAMES,
    METADATA_NOTE,
    METADATA_PARAMETERS,
    ORIG_IM_SIZE,
    OUTPUT_NAMES,
    PRODUCER,
    SEALED_VERSION,
)
from samtrt.decoders.sam_onnx_model import (
    CvatOnnxModel,
    SamHQOnnxModel,
    SamOnnxModel,
    mask_a_prompt,
    single_mask,
)
from samtrt.decoders.sealed import sealed
from samtrt.errors import InputError, SamtrtError
from samtrt.files import replacing
from samtrt.hints import install
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder, build_mask_decoder

OPSET = 18


class ExportedDecoder(nn.Module):
    """The decoder as it is exported, with Meta's choice of a single mask (``single_mask``) if asked
    for."""

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
        masks, iou_predictions = self.decoder.decode(
            image_embeddings,
            self.image_pe,
            point_coords,
            point_labels,
            mask_a_prompt(mask_input, point_labels.shape[0]),
            has_mask_input,
        )
        if not self.return_single_mask:
            return masks, iou_predictions
        # Counted in a tensor: the exporter cannot multiply by a symbolic size.
        num_points = torch.ones_like(point_labels).sum(dim=1, keepdim=True)
        return single_mask(masks, iou_predictions, num_points)


@dataclass(frozen=True)
class DecoderExport:
    """What is exported.

    Attributes:
        contract: one of ``CONTRACTS``: which inputs and outputs; see ``export_decoder``.
        return_single_mask: one mask a prompt (``single_mask``) in place of four; see
            ``has_one_mask``.
        use_stability_score: scores are the stability of the low resolution logits.
        return_extra_metrics: stability and area of the masks as well.
        gelu_approximate: GELU by tanh, for runtimes without erf.
        multimask_output: SAM-HQ's mask is the best of 1…3 with the HQ token's, and not mask 0.
        hq_token_only: SAM-HQ's mask is the HQ token's alone.

    Raises:
        InputError: another contract, or options that a contract does not have.
    """

    contract: str = "samtrt"
    return_single_mask: bool = False
    use_stability_score: bool = False
    return_extra_metrics: bool = False
    gelu_approximate: bool = False
    multimask_output: bool = False
    hq_token_only: bool = False

    def __post_init__(self) -> None:
        if self.contract not in CONTRACTS:
            raise InputError(
                f"contract is {self.contract!r}, expected one of {', '.join(CONTRACTS)}"
            )
        if self.contract == "samtrt" and (self.use_stability_score or self.return_extra_metrics):
            raise InputError(
                "stability scores and extra metrics belong to the contract 'meta'; ask for it, or "
                "leave them out"
            )
        if self.contract == "sam_hq" and self.use_stability_score:
            raise InputError("the contract 'sam_hq' has no stability scores; leave them out")
        if self.contract != "sam_hq" and (self.multimask_output or self.hq_token_only):
            raise InputError(
                "multimask_output and hq_token_only belong to the contract 'sam_hq'; ask for it, "
                "or leave them out"
            )
        if self.contract == "cvat" and self.return_extra_metrics:
            raise InputError("the contract 'cvat' has no extra metrics; leave them out")

    @property
    def has_one_mask(self) -> bool:
        """A prompt, in place of four; ``cvat`` and ``sam_hq`` always do."""
        return self.return_single_mask or self.contract in ("cvat", "sam_hq")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the file, in order."""
        if self.contract == "samtrt":
            return INPUT_NAMES
        first, *others = INPUT_NAMES
        early = (INTERM_EMBEDDINGS,) if self.contract == "sam_hq" else ()
        return (first, *early, *others, ORIG_IM_SIZE)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the file, in order."""
        if self.contract == "samtrt":
            return OUTPUT_NAMES
        if self.contract == "cvat":
            return (*META_OUTPUT_NAMES, *BOX_NAMES)
        *first, last = META_OUTPUT_NAMES
        return (*first, *(EXTRA_METRICS if self.return_extra_metrics else ()), last)

    def module(self, decoder: PromptedMaskDecoder) -> nn.Module:
        """What is traced."""
        if self.gelu_approximate:
            for module in decoder.modules():
                if isinstance(module, nn.GELU):
                    module.approximate = "tanh"
        if self.contract == "meta":
            return SamOnnxModel(
                decoder,
                self.return_single_mask,
                self.use_stability_score,
                self.return_extra_metrics,
            )
        if self.contract == "sam_hq":
            decoder.mask_decoder.hq_token_only = self.hq_token_only  # type: ignore[assignment]
            return SamHQOnnxModel(decoder, self.multimask_output, self.return_extra_metrics)
        if self.contract == "cvat":
            return CvatOnnxModel(decoder, self.use_stability_score)
        return ExportedDecoder(decoder, self.return_single_mask)


def export_decoder(
    parameters: Parameters,
    output: str | os.PathLike[str],
    return_single_mask: bool = False,
    options: DecoderExport | None = None,
) -> None:
    """Writes the mask decoder as an ONNX file, whole or not at all.

    Inputs, all float32, for B prompts of N points and a grid of h×w image tokens:
    ``image_embeddings`` [1, 256, h, w], ``point_coords`` [B, N, 2] in pixels of the model's frame,
    ``point_labels`` [B, N] (−1 padding, 0 background, 1 foreground, 2 and 3 a box's corners),
    ``mask_input`` [B, 1, 4h, 4w] or [1, 1, 4h, 4w], ``has_mask_input`` [1]. Outputs:
    ``low_res_masks`` [B, M, 4h, 4w] and ``iou_predictions`` [B, M], M being 4, or 1 with
    ``return_single_mask``.

    The contracts ``meta`` and ``cvat`` also take ``orig_im_size`` [2], (height, width) of the
    picture; their outputs are those of ``SamOnnxModel`` and of ``CvatOnnxModel``, whose B is 1. So
    does ``sam_hq``, the one contract of a SAM-HQ, which takes ``interm_embeddings`` as well; see
    ``SamHQOnnxModel``.

    Args:
        options: what is exported; ``return_single_mask`` alone otherwise.

    Raises:
        SamtrtError: the exporter's packages are missing, the contract is not the parameters', or
            the file cannot be written.
    """
    options = options or DecoderExport(return_single_mask=return_single_mask)
    onnx = require_exporter(parameters, options.contract)
    config = parameters.encoder_config
    decoder = build_mask_decoder(parameters.decoder(), config)
    with replacing(output) as temporary:  # first, so that a bad name fails before the work
        proto = _to_onnx(options.module(decoder).eval(), options, config)
        metadata = {METADATA_PARAMETERS: parameters.sha256, METADATA_NOTE: parameters.note}
        onnx.helper.set_model_props(proto, {k: v for k, v in metadata.items() if v})
        onnx.checker.check_model(proto)
        temporary.write_bytes(sealed(proto.SerializeToString(deterministic=True)))


def require_exporter(parameters: Parameters, contract: str = "samtrt") -> Any:
    """The ``onnx`` package, for a decoder that can be exported in that contract.

    Raises:
        SamtrtError: it, or what ``torch.onnx.export`` needs beside it, is not installed; or the
            contract is another model's.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401, what torch.onnx.export needs
    except ImportError as error:
        raise SamtrtError(
            f"{error.name} is not installed, and the export needs it; run `{install('export')}`"
        ) from error
    if HQ_TOKEN in parameters.tensors and contract != "sam_hq":
        raise SamtrtError(
            "SAM-HQ's mask decoder takes early features beside the embedding, which the contract "
            f"{contract!r} has no input for; export it with --contract sam_hq, or use load_sam"
        )
    if HQ_TOKEN not in parameters.tensors and contract == "sam_hq":
        raise SamtrtError(
            "these parameters are no SAM-HQ's, and the contract 'sam_hq' is theirs alone; leave it "
            "out, or take another contract"
        )
    return onnx


def _to_onnx(model: nn.Module, options: DecoderExport, config: EncoderConfig) -> Any:
    prompts, points, masks = (
        torch.export.Dim(name) for name in ("num_prompts", "num_points", "num_masks")
    )
    grid, side = config.grid_size, 4 * config.grid_size
    # Neither dynamic size is 1: the exporter would take a 1 for a constant.
    batch = 1 if options.contract == "cvat" else 2
    example = [
        torch.zeros(1, config.out_chans, grid, grid),
        torch.zeros(batch, 5, 2),
        torch.zeros(batch, 5),
        torch.zeros(2 * batch - 1, 1, side, side),
        torch.ones(1),
    ]
    prompt = {1: points} if batch == 1 else {0: prompts, 1: points}
    shapes: list[dict[int, Any]] = [{}, prompt, prompt, {} if batch == 1 else {0: masks}, {}]
    if INTERM_EMBEDDINGS in options.input_names:
        example.insert(1, torch.zeros(4, 1, grid, grid, config.embed_dim))
        shapes.insert(1, {0: torch.export.Dim("num_blocks")})
    if ORIG_IM_SIZE in options.input_names:
        example.append(torch.tensor([0.6, 0.9]) * config.img_size)
        shapes.append({})
    names = options.input_names, options.output_names
    proto = to_onnx(model, tuple(example), *names, tuple(shapes), OPSET)
    if ORIG_IM_SIZE in options.input_names:
        _name_sides(proto)
    return proto


def to_onnx(
    model: nn.Module,
    example: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: tuple[dict[int, Any], ...],
    opset: int,
) -> Any:
    """The model as an ``onnx.ModelProto`` that says nothing of the machine it was made on."""
    from onnx.helper import find_min_ir_version_for

    with _quiet():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None  # torch returns None only for the old exporter
    proto = program.model_proto
    _strip_traces(proto)
    # Of ONNX's format the first version with that opset: older runtimes refuse newer ones.
    proto.ir_version = find_min_ir_version_for(list(proto.opset_import))
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


def _name_sides(proto: Any) -> None:
    """Calls the two dynamic sides of the masks by their names, wherever they occur."""
    (masks,) = (part for part in proto.graph.output if part.name == META_OUTPUT_NAMES[0])
    sides = [dim.dim_param for dim in masks.type.tensor_type.shape.dim[-2:]]
    names = dict(zip(sides, ("height", "width"), strict=True))
    for part in (*proto.graph.value_info, *proto.graph.output):
        for dim in part.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


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

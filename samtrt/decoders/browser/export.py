"""The two graphs as ONNX files, as they are sent.

Weights of 4,096 elements and more are stored in fp16. They are computed with in fp32, which is what
WebAssembly has; the cast of a constant is folded when the file is opened.
"""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.browser.contract import (
    DECODE_INPUTS,
    FILES,
    FORMAT,
    METADATA,
    OUTPUTS,
    PREPARE_INPUTS,
    PREPARED,
)
from samtrt.decoders.browser.graphs import Preparation, PreparedDecoder
from samtrt.decoders.export import require_exporter, to_onnx
from samtrt.decoders.sealed import sealed
from samtrt.files import replacing
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder, build_mask_decoder

_OPSET = 20  # the first with GELU
_HALVED_FROM = 4096  # elements


def export_browser_decoder(parameters: Parameters, folder: str | os.PathLike[str]) -> None:
    """Writes the two graphs into a folder, each also compressed by gzip, for sending.

    Raises:
        SamtrtError: as ``require_exporter``; or a file cannot be written.
    """
    onnx = require_exporter(parameters)
    config = parameters.encoder_config
    decoder = build_mask_decoder(parameters.decoder(), config)
    weights = {_numbers(value.numpy()) for value in decoder.state_dict().values()}
    for name, proto in zip(FILES, _graphs(decoder, config), strict=True):
        _halve(onnx, proto.graph, weights)
        made_of = (parameters.sha256, FORMAT)
        onnx.helper.set_model_props(proto, dict(zip(METADATA, made_of, strict=True)))
        onnx.checker.check_model(proto)
        content = sealed(proto.SerializeToString(deterministic=True))
        with replacing(Path(folder) / f"{name}.gz") as temporary:
            temporary.write_bytes(gzip.compress(content, mtime=0))
        with replacing(Path(folder) / name) as temporary:
            temporary.write_bytes(content)


def _graphs(decoder: PromptedMaskDecoder, config: EncoderConfig) -> tuple[Any, Any]:
    preparation, prepared = Preparation(decoder).eval(), PreparedDecoder(decoder).eval()
    grid = config.grid_size
    picture = (
        torch.zeros(1, config.out_chans, grid, grid, dtype=torch.float16),
        torch.zeros(1, 1, 4 * grid, 4 * grid),
        torch.ones(1),
    )
    first = to_onnx(preparation, picture, PREPARE_INPUTS, PREPARED, ({}, {}, {}), _OPSET)
    points, height, width = (torch.export.Dim(name) for name in ("num_points", "rows", "columns"))
    # Three sizes that differ, and none is 1 or the grid's: the exporter would take them for one.
    prompt = (
        torch.zeros(1, 5, 2),
        torch.zeros(1, 5),
        torch.arange(grid - 2),
        torch.arange(grid - 3),
    )
    dynamic: tuple[dict[int, Any], ...] = (
        *({},) * len(PREPARED),
        {1: points},
        {1: points},
        {0: height},
        {0: width},
    )
    example = (*preparation(*picture), *prompt)
    return first, to_onnx(prepared, example, DECODE_INPUTS, OUTPUTS, dynamic, _OPSET)


def _halve(onnx: Any, graph: Any, weights: set[bytes]) -> None:
    """Large weights become fp16, and are cast to what they were.

    Not so other constants, which the exporter may have computed beforehand: angles of positions
    would lose what fp32 has on purpose.
    """
    casts = []
    for tensor in graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.size < _HALVED_FROM or _numbers(value) not in weights:
            continue
        name = tensor.name
        stored = onnx.numpy_helper.from_array(value.astype(np.float16), f"{name}.fp16")
        tensor.CopyFrom(stored)
        casts.append(
            onnx.helper.make_node("Cast", [stored.name], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _numbers(value: np.ndarray) -> bytes:
    """What an array and its transpositions have in common."""
    return hashlib.sha256(np.sort(value, axis=None).tobytes()).digest()

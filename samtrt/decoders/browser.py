"""The mask decoder for browsers: two ONNX graphs, so that a hover computes what the prompt changes.

``prepare.onnx`` computes what depends on the picture, and on an earlier mask where there is one;
``decode.onnx`` the masks of one prompt. Together they are ``PromptedMaskDecoder``:

- The first block's image side is known before any prompt, so its keys, values and queries are
  projected once a picture; the decoder for many prompts moves these projections to the tokens.
- Positions are added to the image once a block, and not to each product.
- Only the image tokens that the picture covers need be upscaled, as the caller says.
- GELU is its tanh form, a third of the time of erf in WebAssembly, where it differs from the other
  by 5e-4 at most. What it moves in a mask is less than what the weights do:
- Weights of 4,096 elements and more are stored in fp16. They are computed with in fp32, which is
  what WebAssembly has; the cast of a constant is folded when the file is opened.
"""

import gzip
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.checkpoints.config import DECODER_NUM_HEADS, EncoderConfig
from samtrt.checkpoints.parameters import Parameters
from samtrt.decoders.export import METADATA_PARAMETERS, require_exporter, to_onnx
from samtrt.decoders.sealed import is_sealed, sealed
from samtrt.errors import EngineError
from samtrt.files import read_whole, replacing
from samtrt.modeling.mask_decoder import MaskDecoder, split_pixels
from samtrt.modeling.prompt_encoder import PromptEncoder
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder, build_mask_decoder
from samtrt.modeling.transformer import Attention, TwoWayAttentionBlock

FILES = ("prepare.onnx", "decode.onnx")
PREPARE_INPUTS = ("image_embeddings", "mask_input", "has_mask_input")
PREPARED = ("image", "keys", "values", "queries")
DECODE_INPUTS = (*PREPARED, "point_coords", "point_labels", "rows", "columns")
OUTPUTS = ("low_res_masks", "iou_predictions")
FORMAT = "1"  # of inputs and outputs; another one is made anew
METADATA_FORMAT = "samtrt.browser_decoder"
_METADATA = (METADATA_PARAMETERS, METADATA_FORMAT)
_OPSET = 20  # the first with GELU
_HALVED_FROM = 4096  # elements
_HEADS = DECODER_NUM_HEADS


class Preparation(nn.Module):
    """What a picture, and an earlier mask, give to all prompts.

    Shapes: S = h·w image tokens, C = 256 channels, eight heads of 16 channels.
    """

    def __init__(self, decoder: PromptedMaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, image_embeddings: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """fp16 [1, C, h, w], fp32 [1, 1, 4h, 4w] and [1] → ``PREPARED``.

        Returns:
            The image tokens [S, C]; of the first block the keys [8, 16, S] and values [8, S, 16]
            that tokens ask, and the queries [8, 16, S] that ask tokens.
        """
        encoder = self.decoder.prompt_encoder
        mask = encoder.embed_masks(mask_input)
        dense = has_mask_input * mask + (1 - has_mask_input) * encoder.embed_no_mask()
        image = (image_embeddings.float() + dense).flatten(2).transpose(1, 2)[0]
        block = _blocks(self.decoder)[0]
        asked, asking = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        placed = image + _positions(encoder)
        return (
            image,
            _heads(asked.k_proj(placed)).transpose(1, 2).contiguous(),
            _heads(asked.v_proj(image)).contiguous(),
            _heads(asking.q_proj(placed)).transpose(1, 2).contiguous(),
        )


class PreparedDecoder(nn.Module):
    """``PromptedMaskDecoder`` for one prompt, after ``Preparation``."""

    def __init__(self, decoder: PromptedMaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        image: Tensor,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All four masks where the picture is.

        Args:
            image, keys, values, queries: of ``Preparation``.
            point_coords: [1, N, 2] (x, y) in pixels of the model's frame.
            point_labels: [1, N], as ``PromptEncoder.embed_points`` takes them.
            rows, columns: int64 [R] and [Q], the image tokens to upscale; 0, 1, … as far as the
                picture and one more, or all of them.

        Returns:
            Logits [1, 4, 4R, 4Q] and predicted IoUs [1, 4].
        """
        encoder, decoder = self.decoder.prompt_encoder, self.decoder.mask_decoder
        positions = _positions(encoder)
        sparse = encoder.embed_points(point_coords, point_labels)
        outputs = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))
        token_pe = tokens = torch.cat((outputs[None], sparse), dim=1)

        first, second = _blocks(self.decoder)
        tokens = first.norm1(first.self_attn(tokens, tokens, tokens))
        to_image = first.cross_attn_token_to_image
        asked = _attended(to_image, _asking(to_image, tokens + token_pe) @ keys, values)
        tokens = _refined(first, tokens + asked)
        to_token = first.cross_attn_image_to_token
        scores = to_token._split_heads(to_token.k_proj(tokens + token_pe) * to_token.scale)[0]
        image = first.norm4(image + _spread(to_token, scores @ queries, tokens))

        placed, q = image + positions, tokens + token_pe
        tokens = second.norm1(tokens + second.self_attn(q, q, tokens))
        to_image = second.cross_attn_token_to_image
        tokens = _refined(second, tokens + _seen(to_image, tokens + token_pe, image, placed))
        to_token = second.cross_attn_image_to_token
        scores = _scores(to_token, tokens + token_pe, placed)
        image = second.norm4(image + _spread(to_token, scores, tokens))

        transformer: Any = decoder.transformer
        last = transformer.final_attn_token_to_image
        seen = _seen(last, tokens + token_pe, image, image + positions)
        tokens = transformer.norm_final_attn(tokens + seen)
        hyper = torch.stack(
            [mlp(tokens[0, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        )
        side = encoder.image_embedding_size[1]
        shown = image.unflatten(0, (-1, side)).index_select(0, rows).index_select(1, columns)
        return _draw(decoder, shown, hyper), decoder.iou_prediction_head(tokens[:, 0])


def _blocks(decoder: PromptedMaskDecoder) -> tuple[TwoWayAttentionBlock, TwoWayAttentionBlock]:
    layers: Any = decoder.mask_decoder.transformer.layers
    first, second = layers
    assert isinstance(first, TwoWayAttentionBlock) and isinstance(second, TwoWayAttentionBlock)
    return first, second


def _positions(encoder: PromptEncoder) -> Tensor:
    """[S, C]. Computed in the graph: four megabytes that need not be sent."""
    return encoder.get_dense_pe()[0].flatten(1).t()


def _heads(x: Tensor) -> Tensor:
    """[S, 128] → [8, S, 16]."""
    return x.unflatten(-1, (_HEADS, -1)).transpose(0, 1)


def _asking(attention: Attention, q: Tensor) -> Tensor:
    """Scaled queries [1, T, C] → [8, T, 16]."""
    return attention._split_heads(attention.q_proj(q) * attention.scale)[0]


def _attended(attention: Attention, scores: Tensor, values: Tensor) -> Tensor:
    """Scores [8, T, S] and values [8, S, 16] → [1, T, C]."""
    out = (scores.softmax(dim=-1) @ values).transpose(0, 1).flatten(1)
    return attention.out_proj(out[None])


def _refined(block: TwoWayAttentionBlock, tokens: Tensor) -> Tensor:
    tokens = block.norm2(tokens)
    return block.norm3(tokens + block.mlp(tokens))


def _seen(attention: Attention, q: Tensor, image: Tensor, placed: Tensor) -> Tensor:
    """As ``Attention.tokens_to_image``, the image [S, C] with its positions added already."""
    q = (_asking(attention, q) @ attention._per_head(attention.k_proj)).flatten(0, 1)
    weights = (q @ placed.t()).softmax(dim=-1)
    seen = (weights @ image).unflatten(0, (_HEADS, -1))
    values = seen @ attention._per_head(attention.v_proj).transpose(-1, -2)
    return attention.out_proj(values.transpose(0, 1).flatten(1)[None] + attention.v_proj.bias)


def _scores(attention: Attention, k: Tensor, placed: Tensor) -> Tensor:
    """Of the image's queries and the tokens' keys, [8, T, S]."""
    k = attention._split_heads(attention.k_proj(k) * attention.scale)[0]
    bias = k @ attention.q_proj.bias.unflatten(0, (_HEADS, -1, 1))
    k = (k @ attention._per_head(attention.q_proj)).flatten(0, 1)
    return (k @ placed.t() + bias.flatten(0, 1)).unflatten(0, (_HEADS, -1))


def _spread(attention: Attention, scores: Tensor, v: Tensor) -> Tensor:
    """What the image takes from the tokens: scores [8, T, S], v [1, T, C] → [S, C]."""
    weights = scores.softmax(dim=1).flatten(0, 1)
    out_weight = attention.out_proj.weight.t().unflatten(0, (_HEADS, -1))
    values = attention._split_heads(attention.v_proj(v))[0] @ out_weight
    return weights.t() @ (values.flatten(0, 1) + attention.out_proj.bias / _HEADS)


def _draw(decoder: MaskDecoder, image: Tensor, hyper: Tensor) -> Tensor:
    """As ``MaskDecoder._draw``: image [R, Q, C], hyper [M, C / 8] → [1, M, 4R, 4Q]."""
    height, width = image.shape[:2]
    layers: list[Any] = list(decoder.output_upscaling)
    first, norm, _, second, _ = layers
    pixels = norm.over_last(split_pixels(first, image.flatten(0, 1)))  # [R·Q, 4, C / 4]
    pixels = split_pixels(second, F.gelu(pixels, approximate="tanh"))
    pixels = F.gelu(pixels, approximate="tanh")
    masks = pixels.flatten(0, 2) @ hyper.t()
    masks = masks.unflatten(0, (height, width, 2, 2, 2, 2)).permute(6, 0, 2, 4, 1, 3, 5)
    return masks.flatten(4, 6).flatten(1, 3)[None]


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
        onnx.helper.set_model_props(proto, dict(zip(_METADATA, made_of, strict=True)))
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


class BrowserDecoder:
    """The two graphs in ONNX Runtime, as the page runs them: what is checked before it is sent.

    Attributes:
        parameters_sha256: of the parameters they were made of.
        format: ``FORMAT`` of the version that made them.

    Raises:
        EngineError: a file is missing, damaged, or not of the other one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import onnxruntime as ort

        self.folder = Path(folder)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # none: the exception says it
        sessions = []
        for name in FILES:
            try:
                content = bytes(read_whole(self.folder / name))
                if not is_sealed(content):
                    raise ValueError("it does not end in a digest")
                if gzip.decompress(read_whole(self.folder / f"{name}.gz")) != content:
                    raise ValueError("its compressed form is another")
                providers = ["CPUExecutionProvider"]
                sessions.append(ort.InferenceSession(content, options, providers))
            except Exception as error:  # ONNX Runtime's share no base class of their own
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise EngineError(
                    f"{self.folder / name} cannot be used as the page's mask decoder ({reason}); "
                    f"remove {self.folder} and start the server again, which makes it anew"
                ) from error
        self._prepare, self._decode = sessions
        metadata = [session.get_modelmeta().custom_metadata_map for session in sessions]
        made_of = [[of.get(key, "") for key in _METADATA] for of in metadata]
        if made_of[0] != made_of[1]:
            raise EngineError(
                f"the files in {self.folder} are not of one mask decoder; remove the folder and "
                "start the server again, which makes it anew"
            )
        self.parameters_sha256, self.format = made_of[0]

    def prepare(self, embedding: np.ndarray, mask: np.ndarray | None = None) -> list[np.ndarray]:
        """[1, 256, h, w], and [1, 1, 4h, 4w] logits or None → ``PREPARED``."""
        side = 4 * embedding.shape[-1]
        zeros = np.zeros((1, 1, side, side), np.float32)
        feed = {
            "image_embeddings": embedding.astype(np.float16),
            "mask_input": zeros if mask is None else mask,
            "has_mask_input": np.array([mask is not None], np.float32),
        }
        return self._prepare.run(list(PREPARED), feed)

    def decode(
        self,
        prepared: Sequence[np.ndarray],
        coords: np.ndarray,
        labels: np.ndarray,
        shown: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coords [1, N, 2] and labels [1, N] → logits [1, 4, 4R, 4Q] and predicted IoUs [1, 4].

        Args:
            shown: (R, Q) rows and columns of image tokens to upscale; None for all.
        """
        side = int(np.sqrt(len(prepared[0])))
        rows, columns = shown or (side, side)
        feed = {
            **dict(zip(PREPARED, prepared, strict=True)),
            "point_coords": coords,
            "point_labels": labels,
            "rows": np.arange(rows),
            "columns": np.arange(columns),
        }
        logits, scores = self._decode.run(list(OUTPUTS), feed)
        return logits, scores

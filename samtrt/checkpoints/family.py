"""Models that have SAM's image encoder and something else than SAM's decoders.

Each is told by its names and becomes an image encoder under Meta's names. What it is besides
(decoders of its own, a language model) is left out, and said in the parameters' note.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from samtrt.checkpoints.config import READOUT_LAYER, STRIDED_LAYERS
from samtrt.checkpoints.parameters import Parameters
from samtrt.checkpoints.shapes import (
    ENCODER_PREFIX,
    check_tensors,
)
from samtrt.checkpoints.unwrapping import shown
from samtrt.errors import CheckpointError

_POSITIONS = "pos_embed"
_PATCHES = "patch_embed.proj.weight"
_LAST = "neck.3.bias"


@dataclass(frozen=True)
class Relative:
    """An image encoder of the family, under Meta's names.

    Attributes:
        tensors: full key names.
        taps: blocks whose output follows the embedding.
        note: what was left out.
    """

    tensors: dict[str, torch.Tensor]
    taps: tuple[int, ...]
    note: str


def recognised(tensors: dict[str, torch.Tensor], path: Path) -> Relative | None:
    """What the tensors are, where they are one of the family's that is no SAM; None otherwise.

    Raises:
        CheckpointError: they seem to be one of them, and are not whole.
    """
    for tells, prefixes, convert in _FAMILY:
        root = next((prefix for prefix in prefixes if prefix + _LAST in tensors), None)
        if root is None or not tells(tensors):
            continue
        for name in (_POSITIONS, _PATCHES):
            if root + name not in tensors:
                raise CheckpointError(f"{path} has no {shown(root + name)}; download it again")
        encoder = {
            ENCODER_PREFIX + name.removeprefix(root): tensor
            for name, tensor in tensors.items()
            if name.startswith(root)
        }
        return convert(encoder, tensors, path)
    return None


def _cellpose(
    encoder: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], path: Path
) -> Relative:
    """Cellpose-SAM (cellpose 4, ``vit_sam.Transformer``): attention is global in every block, and
    the tables of relative positions are those of the SAM that it was made of."""
    positions, weight = encoder[ENCODER_PREFIX + _POSITIONS], tensors["W2"]
    if positions.ndim != 4 or weight.ndim != 4:
        raise CheckpointError(f"{path} is not a whole Cellpose-SAM; download it again")
    chans = len(weight)
    if not torch.equal(weight.float().reshape(chans, -1), torch.eye(chans)):
        raise CheckpointError(
            f"{path}: W2, which puts Cellpose-SAM's pixels in their places, was changed; expected "
            "the identity"
        )
    encoder = encoder | {
        f"{ENCODER_PREFIX}{READOUT_LAYER}.{kind}": tensors[f"out.{kind}"]
        for kind in ("weight", "bias")
    }
    return Relative(
        with_global_tables(encoder, positions.shape[1]),
        (),
        (
            "Cellpose-SAM: flows and cell probability of pictures that its own program has "
            "normalised; no mask decoder"
        ),
    )


def with_global_tables(encoder: dict[str, torch.Tensor], grid: int) -> dict[str, torch.Tensor]:
    """The encoder with all tables of relative positions interpolated for the whole grid.

    Linearly, as Meta's ``get_rel_pos`` does where a table has another length than it needs.
    """
    return {
        name: resized_table(tensor, 2 * grid - 1) if ".attn.rel_pos_" in name else tensor
        for name, tensor in encoder.items()
    }


def resized_table(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A table [L, D] with another number of rows, in float32 where it changes."""
    if table.ndim != 2 or not table.numel() or len(table) == rows:
        return table
    return F.interpolate(table.float().T[None], size=rows, mode="linear")[0].T.contiguous()


def _cellvit(encoder: dict[str, torch.Tensor], _: dict[str, torch.Tensor], path: Path) -> Relative:
    """CellViT-SAM: its decoders take the output of four blocks, evenly spread."""
    depth = _depth(encoder)
    if depth % 4:
        raise CheckpointError(f"{path}: {depth} blocks, expected a CellViT-SAM's 12, 24 or 32")
    taps = tuple(depth // 4 * (i + 1) - 1 for i in range(4))
    return Relative(
        encoder,
        taps,
        (
            f"CellViT-SAM: the embedding and the output of blocks {', '.join(map(str, taps))}; its "
            "decoders were left out"
        ),
    )


def _deep_encoder(
    encoder: dict[str, torch.Tensor], _: dict[str, torch.Tensor], path: Path
) -> Relative:
    """DeepEncoder's first half (DeepSeek-OCR, GOT-OCR, Vary)."""
    return Relative(
        encoder,
        (),
        (
            "DeepEncoder: SAM's image encoder and two strided convolutions; what follows them was "
            "left out"
        ),
    )


def _depth(encoder: Iterable[str]) -> int:
    start = ENCODER_PREFIX + "blocks."
    return len({name.split(".")[2] for name in encoder if name.startswith(start)})


def at_size(parameters: Parameters, img_size: int) -> Parameters:
    """An image encoder alone, for pictures of another size.

    Position embeddings become those that its own program uses: DeepEncoder's are interpolated
    (bicubic, antialiased), CellViT-SAM's are cut off; the global blocks' tables of relative
    positions are interpolated linearly.

    Args:
        img_size: side of the square pictures, in pixels.

    Raises:
        CheckpointError: the size is no multiple of the patches', is larger than a CellViT-SAM's,
            or the model is of a kind that has one size.
    """
    config = parameters.encoder_config
    if parameters.has_decoder or not (config.taps or config.strided_chans):
        raise CheckpointError(
            "only the image encoders of DeepEncoder and CellViT-SAM take pictures of other sizes; "
            "leave the size out"
        )
    if img_size < 1 or img_size % config.patch_size or (config.taps and img_size > config.img_size):
        most = f", at most {config.img_size}" if config.taps else ""
        raise CheckpointError(
            f"pictures of {img_size} pixels a side, expected a multiple of "
            f"{config.patch_size}{most}"
        )
    grid = img_size // config.patch_size
    tensors = dict(parameters.tensors)
    name = ENCODER_PREFIX + _POSITIONS
    positions = torch.from_numpy(tensors[name])
    if config.taps:
        positions = positions[:, :grid, :grid].contiguous()
    elif grid != config.grid_size:
        resized = F.interpolate(
            positions.float().permute(0, 3, 1, 2), (grid, grid), mode="bicubic", antialias=True
        )
        positions = resized.to(positions.dtype).permute(0, 2, 3, 1).contiguous()
    tensors[name] = positions.numpy()
    for block in config.global_attn_indexes:
        for axis in "hw":
            name = f"{ENCODER_PREFIX}blocks.{block}.attn.rel_pos_{axis}"
            tensors[name] = resized_table(torch.from_numpy(tensors[name]), 2 * grid - 1).numpy()
    resized_config = check_tensors(tensors, f"the model at {img_size} pixels", config.taps)
    return replace(parameters, encoder_config=resized_config, tensors=tensors)


_Tensors = dict[str, torch.Tensor]
_Convert = Callable[[_Tensors, _Tensors, Path], Relative]

# What tells a model, where its image encoder may stand, and what makes ours of it.
_FAMILY: tuple[tuple[Callable[[_Tensors], bool], tuple[str, ...], _Convert], ...] = (
    (lambda names: {"W2", "out.weight", "out.bias"} <= names.keys(), ("encoder.",), _cellpose),
    (
        lambda names: any(name.startswith("nuclei_binary_map_decoder.") for name in names),
        ("encoder.",),
        _cellvit,
    ),
    (
        lambda names: any(f".{name}".endswith(f".{STRIDED_LAYERS[1]}.weight") for name in names),
        ("model.sam_model.", "sam_model.", "model.vision_tower_high.", "vision_tower_high.", ""),
        _deep_encoder,
    ),
)

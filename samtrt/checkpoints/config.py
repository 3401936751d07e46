"""What an image encoder is made of: its sizes, and nothing of its weights."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Len, Lt

from samtrt.records import STRICT

# Meta's normalisation constants, RGB, in units of 0…255 (segment_anything/modeling/sam.py).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# The prompt encoder and mask decoder of every SAM (segment_anything/build_sam.py).
PROMPT_EMBED_DIM = 256
MASK_IN_CHANS = 16
NUM_MULTIMASK_OUTPUTS = 3
DECODER_DEPTH = 2
DECODER_NUM_HEADS = 8
DECODER_MLP_DIM = 2048

# Layers after the neck that only some models have, by the names of those that do.
STRIDED_LAYERS = ("net_2", "net_3")  # DeepEncoder's
READOUT_LAYER = "out"  # Cellpose-SAM's


# What is read from files is held against these; a ViT-H has 1,280 channels and 32 blocks.
_Channels = Annotated[int, Ge(1), Le(1 << 16)]
_Pixels = Annotated[int, Ge(1), Le(1 << 14)]
_Blocks = Annotated[int, Ge(1), Le(1024)]
_BlockIndex = Annotated[int, Ge(0), Lt(1024)]
_EachBlock = Annotated[tuple[Annotated[int, Ge(1), Le(1 << 18)], ...], Len(0, 1024)]


# Fields that only some models have, of tuples.
_TUPLES = ("head_dims", "mlp_dims", "taps", "strided_chans")


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of SAM's ViT image encoder (``ImageEncoderViT`` of segment_anything).

    Attributes:
        embed_dim: channels C of the token sequence.
        depth: number of transformer blocks.
        num_heads: attention heads of every block; ``embed_dim`` is a multiple of it, unless
            ``head_dims`` are given.
        global_attn_indexes: blocks whose attention spans the whole token grid.
        window_size: side of the square attention windows of the other blocks, in tokens.
        img_size: side of the square input, in pixels.
        patch_size: side of a patch, in pixels.
        mlp_dim: hidden channels of a block's MLP; of the widest, where ``mlp_dims`` are given.
        out_chans: channels of the embedding.
        layer_norm_eps: epsilon of the blocks' LayerNorm (the neck's LayerNorm2d has its own).
        head_dims: channels of a head, block by block, where they are not ``embed_dim`` /
            ``num_heads`` in all of them (pruned models); empty otherwise.
        mlp_dims: hidden channels of the MLPs, block by block, where they differ; empty otherwise.
        taps: blocks whose output follows the embedding, as further channels (SAM-HQ, CellViT).
        strided_chans: output channels of the 3×3 convolutions of stride 2 after the neck
            (DeepEncoder).
        readout_chans: channels of the picture that the output is, where the embedding is read out
            pixel by pixel (Cellpose-SAM); 0 where it is not.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    embed_dim: _Channels
    depth: _Blocks
    num_heads: _Channels
    global_attn_indexes: Annotated[tuple[_BlockIndex, ...], Len(0, 1024)]
    window_size: _Pixels = 14
    img_size: _Pixels = 1024
    patch_size: _Pixels = 16
    mlp_dim: Annotated[int, Ge(0), Le(1 << 18)] = 0
    out_chans: _Channels = 256
    layer_norm_eps: Annotated[float, Gt(0), Lt(1)] = 1e-6
    head_dims: _EachBlock = ()
    mlp_dims: _EachBlock = ()
    taps: Annotated[tuple[_BlockIndex, ...], Len(0, 64)] = ()
    strided_chans: Annotated[tuple[_Channels, ...], Len(0, 8)] = ()
    readout_chans: Annotated[int, Ge(0), Le(1 << 16)] = 0

    def __post_init__(self) -> None:
        for name in ("global_attn_indexes", *_TUPLES):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.mlp_dim == 0:
            widest = max(self.mlp_dims, default=4 * self.embed_dim)
            object.__setattr__(self, "mlp_dim", widest)
        self._check_each_block()
        if list(self.taps) != sorted({tap for tap in self.taps if tap < self.depth}):
            raise ValueError(f"taps {self.taps}, expected blocks below {self.depth} in their order")
        if (bool(self.taps), bool(self.strided_chans), bool(self.readout_chans)).count(True) > 1:
            raise ValueError("an encoder has taps, strided convolutions or a readout, not two")
        if self.embed_dim % self.num_heads and not self.head_dims:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.img_size % self.patch_size:
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}"
            )

    def _check_each_block(self) -> None:
        """One description for one encoder: what is given block by block differs somewhere."""
        for name, usual in (
            ("head_dims", {self.embed_dim / self.num_heads}),
            ("mlp_dims", {self.mlp_dim}),
        ):
            sizes = getattr(self, name)
            if sizes and (len(sizes) != self.depth or set(sizes) == usual):
                raise ValueError(
                    f"{name} has {len(sizes)} sizes, expected one for each of {self.depth} blocks, "
                    "and none where all are as usual"
                )
        if self.mlp_dims and max(self.mlp_dims) != self.mlp_dim:
            raise ValueError(f"mlp_dim {self.mlp_dim} is not the largest of {self.mlp_dims}")

    @property
    def is_uniform(self) -> bool:
        """Whether all blocks have the same sizes, and heads share out ``embed_dim``."""
        return not self.head_dims and not self.mlp_dims

    @property
    def head_dim(self) -> int:
        """Channels of one attention head, of a uniform encoder."""
        return self.embed_dim // self.num_heads

    def block_head_dim(self, block: int) -> int:
        """Channels of one attention head of that block."""
        return self.head_dims[block] if self.head_dims else self.head_dim

    def block_mlp_dim(self, block: int) -> int:
        """Hidden channels of that block's MLP."""
        return self.mlp_dims[block] if self.mlp_dims else self.mlp_dim

    @property
    def grid_size(self) -> int:
        """Side of the square token grid, in tokens."""
        return self.img_size // self.patch_size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of what the encoder makes of a picture; (256, 64, 64) for Meta's.

        After the ``out_chans`` of the embedding come ``embed_dim`` channels of each tap.
        """
        if self.readout_chans:
            return self.readout_chans, self.img_size, self.img_size
        side = self.grid_size
        for _ in self.strided_chans:
            side = (side + 1) // 2
        chans = self.strided_chans[-1] if self.strided_chans else self.out_chans
        return chans + len(self.taps) * self.embed_dim, side, side

    @property
    def is_plain(self) -> bool:
        """Whether the output is the embedding alone, as with Meta's models."""
        return not self.taps and not self.strided_chans and not self.readout_chans

    def is_global(self, block: int) -> bool:
        """Whether that block attends over the whole grid."""
        return block in self.global_attn_indexes

    def attention_size(self, block: int) -> int:
        """Side of the square that one attention of that block spans, in tokens."""
        return self.grid_size if self.is_global(block) else self.window_size

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write and ``parse_record`` reads back.

        What only some models have is left out of the others' records.
        """
        record = asdict(self)
        for name in (*_TUPLES, "readout_chans"):
            if not record[name]:
                del record[name]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def vit_b() -> EncoderConfig:
    """SAM ViT-B (segment_anything/build_sam.py, ``build_sam_vit_b``)."""
    return EncoderConfig(768, 12, 12, (2, 5, 8, 11))


def vit_l() -> EncoderConfig:
    """SAM ViT-L (``build_sam_vit_l``)."""
    return EncoderConfig(1024, 24, 16, (5, 11, 17, 23))


def vit_h() -> EncoderConfig:
    """SAM ViT-H (``build_sam_vit_h``)."""
    return EncoderConfig(1280, 32, 16, (7, 15, 23, 31))

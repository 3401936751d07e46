"""The tensors of a SAM: their names and shapes, and the encoder's sizes read from them."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.config import READOUT_LAYER, STRIDED_LAYERS, EncoderConfig
from samtrt.console import track
from samtrt.errors import CheckpointError

ENCODER_PREFIX = "image_encoder."
HQ_TOKEN = "mask_decoder.hf_token.weight"  # SAM-HQ's
_DECODERS = ("prompt_encoder.", "mask_decoder.")
_SHOWN = 8  # faults in a message


def parameter_shapes(
    config: EncoderConfig, hq: bool = False, decoder: bool = True
) -> dict[str, tuple[int, ...]]:
    """Every key of a SAM checkpoint with its shape, as Meta's ``Sam.state_dict()`` has them.

    Args:
        hq: with what SAM-HQ's mask decoder has more.
        decoder: with a prompt encoder and mask decoder.
    """
    shapes = {ENCODER_PREFIX + name: shape for name, shape in _encoder_shapes(config).items()}
    if decoder:
        shapes |= _prompt_encoder_shapes() | _mask_decoder_shapes()
    if hq:
        shapes |= _hq_shapes(config.embed_dim)
    return shapes


def has_decoder(names: Iterable[str]) -> bool:
    """Whether there is something of a prompt encoder or mask decoder."""
    return any(name.startswith(_DECODERS) for name in names)


def infer_encoder_config(shapes: dict[str, tuple[int, ...]]) -> EncoderConfig:
    """The encoder's sizes, from the shapes of ``image_encoder.*``.

    A block attends globally when its relative-position table spans the whole token grid
    (2·grid − 1 rows); the other blocks' tables give the window size.

    Raises:
        CheckpointError: the keys that carry the sizes are missing or contradict each other.
    """
    try:
        embed_dim, in_chans, patch_size, _ = shapes[ENCODER_PREFIX + "patch_embed.proj.weight"]
        _, grid, grid_w, _ = shapes[ENCODER_PREFIX + "pos_embed"]
        depth = 1 + max(
            int(name.removeprefix(ENCODER_PREFIX + "blocks.").split(".")[0])
            for name in shapes
            if name.startswith(ENCODER_PREFIX + "blocks.")
        )
        blocks = [f"{ENCODER_PREFIX}blocks.{i}." for i in range(depth)]
        tables = [shapes[block + "attn.rel_pos_h"] for block in blocks]
        rel_pos_rows = [rows for rows, _ in tables]
        head_dims = tuple(channels for _, channels in tables)
        mlp_dims = tuple(shapes[block + "mlp.lin1.weight"][0] for block in blocks)
        attended = [shapes[block + "attn.proj.weight"][1] for block in blocks]
        out_chans = shapes[ENCODER_PREFIX + "neck.0.weight"][0]
        weights = [f"{ENCODER_PREFIX}{layer}.weight" for layer in (*STRIDED_LAYERS, READOUT_LAYER)]
        *strided, readout = [shapes[name][0] if name in shapes else 0 for name in weights]
        strided_chans = tuple(
            chans for name, chans in zip(weights, strided, strict=False) if name in shapes
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            "this is not a SAM checkpoint: the image encoder's sizes cannot be read from its keys "
            f"({error}); expected segment_anything's sam_vit_b, sam_vit_l or sam_vit_h layout"
        ) from None
    sizes_read = (embed_dim, patch_size, grid, out_chans, *head_dims, *mlp_dims, *strided_chans)
    num_heads = attended[0] // max(head_dims[0], 1)
    is_whole = num_heads > 0 and attended == [num_heads * dim for dim in head_dims]
    if in_chans != 3 or grid != grid_w or 0 in sizes_read or not is_whole:
        raise CheckpointError(
            f"unusable image encoder: {in_chans} input channels, a {grid}×{grid_w} token grid, "
            f"{embed_dim} channels in heads of {head_dims[0]}; "
            "expected 3 channels, a square grid, as many whole heads in all blocks, and nothing of "
            "size 0"
        )
    window_rows = {rows for rows in rel_pos_rows if rows != 2 * grid - 1}
    if len(window_rows) > 1 or any(rows % 2 == 0 for rows in window_rows):
        raise CheckpointError(
            f"unusable image encoder: relative-position tables of {sorted(window_rows)} rows; "
            f"expected 2·{grid} − 1 in global blocks and one odd number in all window blocks"
        )
    return EncoderConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        global_attn_indexes=tuple(i for i in range(depth) if rel_pos_rows[i] == 2 * grid - 1),
        window_size=(window_rows.pop() + 1) // 2 if window_rows else grid,
        img_size=grid * patch_size,
        patch_size=patch_size,
        mlp_dim=max(mlp_dims),
        out_chans=out_chans,
        strided_chans=strided_chans,
        readout_chans=readout // patch_size**2,
        head_dims=head_dims if {dim * num_heads for dim in head_dims} != {embed_dim} else (),
        mlp_dims=mlp_dims if len(set(mlp_dims)) > 1 else (),
    )


def check_tensors(
    tensors: dict[str, np.ndarray], source: str, taps: tuple[int, ...] = ()
) -> EncoderConfig:
    """The encoder's sizes of a whole set of tensors, which must be SAM's, or its encoder's alone.

    Only an encoder with taps or a head of its own may be alone.

    Args:
        tensors: full key name to array.
        source: what the message calls the set.
        taps: the encoder's, which tensors do not show; SAM-HQ's are known.

    Raises:
        CheckpointError: names every missing, unexpected or wrongly shaped tensor, or one with NaN.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        config = infer_encoder_config(shapes)
        hq = HQ_TOKEN in shapes
        if hq:
            taps = config.global_attn_indexes[:1]
        config = replace(config, taps=taps)
        decoder = has_decoder(shapes)
        if decoder and (config.strided_chans or config.readout_chans or hq > bool(taps)):
            raise ValueError("its image encoder does not end in what its mask decoder takes")
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    expected = parameter_shapes(config, hq, decoder or config.is_plain)
    faults = [f"missing {name}" for name in expected if name not in shapes]
    faults += [f"unexpected {name}" for name in shapes if name not in expected]
    faults += [
        f"{name} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        listed = "; ".join(
            fault if fault.isprintable() else ascii(fault) for fault in faults[:_SHOWN]
        )
        raise CheckpointError(f"{source} does not fit SAM's layout: {listed}{more}")
    for name, tensor in track(tensors.items(), "checking", len(tensors), delay=2):
        if not np.isfinite(tensor).all():
            raise CheckpointError(
                f"{source}: parameter {name} holds NaN or inf; expected finite weights, "
                "the training that made them diverged or the file is damaged"
            )
    return config


def _linear(name: str, out_dim: int, in_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _encoder_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    dim, out, patch = config.embed_dim, config.out_chans, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config.grid_size, config.grid_size, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
    }
    for i in range(config.depth):
        block = f"blocks.{i}"
        head_dim, mlp_dim = config.block_head_dim(i), config.block_mlp_dim(i)
        inner = config.num_heads * head_dim
        table = (2 * config.attention_size(i) - 1, head_dim)
        shapes |= _norm(f"{block}.norm1", dim)
        shapes |= {f"{block}.attn.rel_pos_h": table, f"{block}.attn.rel_pos_w": table}
        shapes |= _linear(f"{block}.attn.qkv", 3 * inner, dim)
        shapes |= _linear(f"{block}.attn.proj", dim, inner)
        shapes |= _norm(f"{block}.norm2", dim)
        shapes |= _linear(f"{block}.mlp.lin1", mlp_dim, dim)
        shapes |= _linear(f"{block}.mlp.lin2", dim, mlp_dim)
    shapes["neck.0.weight"] = (out, dim, 1, 1)
    shapes |= _norm("neck.1", out)
    shapes["neck.2.weight"] = (out, out, 3, 3)
    shapes |= _norm("neck.3", out)
    for name, chans in zip(STRIDED_LAYERS, config.strided_chans, strict=False):
        shapes[f"{name}.weight"] = (chans, out, 3, 3)
        out = chans
    if config.readout_chans:
        chans = config.readout_chans * patch**2
        shapes[f"{READOUT_LAYER}.weight"] = (chans, out, 1, 1)
        shapes[f"{READOUT_LAYER}.bias"] = (chans,)
    return shapes


def _prompt_encoder_shapes() -> dict[str, tuple[int, ...]]:
    dim, channels = sizes.PROMPT_EMBED_DIM, sizes.MASK_IN_CHANS
    downscaling = "prompt_encoder.mask_downscaling"
    return {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, dim // 2),
        # background and foreground point, first and second corner of a box
        **{f"prompt_encoder.point_embeddings.{i}.weight": (1, dim) for i in range(4)},
        "prompt_encoder.not_a_point_embed.weight": (1, dim),
        f"{downscaling}.0.weight": (channels // 4, 1, 2, 2),
        f"{downscaling}.0.bias": (channels // 4,),
        **_norm(f"{downscaling}.1", channels // 4),
        f"{downscaling}.3.weight": (channels, channels // 4, 2, 2),
        f"{downscaling}.3.bias": (channels,),
        **_norm(f"{downscaling}.4", channels),
        f"{downscaling}.6.weight": (dim, channels, 1, 1),
        f"{downscaling}.6.bias": (dim,),
        "prompt_encoder.no_mask_embed.weight": (1, dim),
    }


def _mask_decoder_shapes() -> dict[str, tuple[int, ...]]:
    dim, tokens = sizes.PROMPT_EMBED_DIM, sizes.NUM_MULTIMASK_OUTPUTS + 1
    shapes: dict[str, tuple[int, ...]] = {}

    def attention(name: str, inner: int) -> None:
        for projection in ("q_proj", "k_proj", "v_proj"):
            shapes.update(_linear(f"{name}.{projection}", inner, dim))
        shapes.update(_linear(f"{name}.out_proj", dim, inner))

    def mlp(name: str, out_dim: int) -> None:
        for i, width in enumerate((dim, dim, out_dim)):
            shapes.update(_linear(f"{name}.layers.{i}", width, dim))

    for i in range(sizes.DECODER_DEPTH):
        layer = f"mask_decoder.transformer.layers.{i}"
        attention(f"{layer}.self_attn", dim)
        # Cross attention works at half the width.
        attention(f"{layer}.cross_attn_token_to_image", dim // 2)
        attention(f"{layer}.cross_attn_image_to_token", dim // 2)
        shapes.update(_linear(f"{layer}.mlp.lin1", sizes.DECODER_MLP_DIM, dim))
        shapes.update(_linear(f"{layer}.mlp.lin2", dim, sizes.DECODER_MLP_DIM))
        for norm in ("norm1", "norm2", "norm3", "norm4"):
            shapes.update(_norm(f"{layer}.{norm}", dim))
    attention("mask_decoder.transformer.final_attn_token_to_image", dim // 2)
    shapes.update(_norm("mask_decoder.transformer.norm_final_attn", dim))
    shapes["mask_decoder.iou_token.weight"] = (1, dim)
    shapes["mask_decoder.mask_tokens.weight"] = (tokens, dim)
    upscaling = "mask_decoder.output_upscaling"
    shapes[f"{upscaling}.0.weight"] = (dim, dim // 4, 2, 2)
    shapes[f"{upscaling}.0.bias"] = (dim // 4,)
    shapes.update(_norm(f"{upscaling}.1", dim // 4))
    shapes[f"{upscaling}.3.weight"] = (dim // 4, dim // 8, 2, 2)
    shapes[f"{upscaling}.3.bias"] = (dim // 8,)
    for i in range(tokens):
        mlp(f"mask_decoder.output_hypernetworks_mlps.{i}", dim // 8)
    mlp("mask_decoder.iou_prediction_head", tokens)
    return shapes


def _hq_shapes(embed_dim: int) -> dict[str, tuple[int, ...]]:
    """What SAM-HQ adds to the mask decoder (arXiv:2306.01567)."""
    dim = sizes.PROMPT_EMBED_DIM
    shapes: dict[str, tuple[int, ...]] = {HQ_TOKEN: (1, dim)}
    for i, width in enumerate((dim, dim, dim // 8)):
        shapes |= _linear(f"mask_decoder.hf_mlp.layers.{i}", width, dim)
    for name, channels, middle in (
        ("compress_vit_feat", embed_dim, dim),
        ("embedding_encoder", dim, dim // 4),
    ):
        layer = f"mask_decoder.{name}"
        shapes |= {f"{layer}.0.weight": (channels, middle, 2, 2), f"{layer}.0.bias": (middle,)}
        shapes |= _norm(f"{layer}.1", middle)
        shapes |= {f"{layer}.3.weight": (middle, dim // 8, 2, 2), f"{layer}.3.bias": (dim // 8,)}
    layer, middle = "mask_decoder.embedding_maskfeature", dim // 4
    shapes |= {f"{layer}.0.weight": (middle, dim // 8, 3, 3), f"{layer}.0.bias": (middle,)}
    shapes |= _norm(f"{layer}.1", middle)
    shapes |= {f"{layer}.3.weight": (dim // 8, middle, 3, 3), f"{layer}.3.bias": (dim // 8,)}
    return shapes

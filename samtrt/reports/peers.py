"""Meta's own package, the peer that every comparison stands beside."""

import importlib.util
from types import ModuleType
from typing import Any

import torch

from samtrt.checkpoints.config import EncoderConfig
from samtrt.errors import SamtrtError
from samtrt.hints import install
from samtrt.modeling.image_encoder import encoder_arguments

# torchvision's wheels register kernels for operators that only its CUDA-matched binary defines;
# beside a CPU build of torch the import fails unless somebody has declared them. (Beside a CUDA
# build the binary declares them itself, also without a GPU, and a second declaration aborts.)
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # an operator lives as long as its Library object


def import_segment_anything() -> ModuleType:
    """Meta's ``segment_anything`` package.

    Raises:
        SamtrtError: the package, or torchvision that it imports, is not installed, or what has its
            name here is our own tree.
    """
    for name in ("segment_anything", "torchvision"):
        if importlib.util.find_spec(name) is None:
            raise SamtrtError(
                f"{name} is not installed, and the comparison needs Meta's package; "
                f"run `{install('compare')}`"
            )
    import_torchvision()
    import segment_anything

    if segment_anything.__name__ != "segment_anything":
        raise SamtrtError(
            "samtrt.install has put our own tree in the place of Meta's package, which the "
            "comparison needs; compare in a process of its own"
        )
    return segment_anything


def import_torchvision() -> None:
    """Imports torchvision, with its operators declared where its own binary does not do it.

    A binary that loads declares them itself, and to declare an operator twice ends the process;
    one that does not load leaves an import that fails.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _libraries or "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for schema in _TORCHVISION_SCHEMAS:
            library.define(schema)
        _libraries.append(library)
        importlib.import_module("torchvision")


def meta_image_encoder(config: EncoderConfig) -> torch.nn.Module:
    """Meta's ``ImageEncoderViT`` of these sizes, in eval mode; its parameters are not yet loaded.

    Called on [B, 3, img_size, img_size], it returns [B, out_chans, grid_size, grid_size].
    """
    import_segment_anything()
    from segment_anything.modeling import ImageEncoderViT

    encoder: torch.nn.Module = ImageEncoderViT(**encoder_arguments(config))
    return encoder.eval()


def meta_sam(config: EncoderConfig) -> Any:
    """Meta's ``Sam`` around ``meta_image_encoder``, in eval mode; parameters not yet loaded."""
    import_segment_anything()
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    from samtrt.checkpoints import config as c

    grid = config.grid_size
    sam = Sam(
        image_encoder=meta_image_encoder(config),
        prompt_encoder=PromptEncoder(
            embed_dim=c.PROMPT_EMBED_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(config.img_size, config.img_size),
            mask_in_chans=c.MASK_IN_CHANS,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=c.NUM_MULTIMASK_OUTPUTS,
            transformer=TwoWayTransformer(
                depth=c.DECODER_DEPTH,
                embedding_dim=c.PROMPT_EMBED_DIM,
                mlp_dim=c.DECODER_MLP_DIM,
                num_heads=c.DECODER_NUM_HEADS,
            ),
            transformer_dim=c.PROMPT_EMBED_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=c.PROMPT_EMBED_DIM,
        ),
        pixel_mean=list(c.PIXEL_MEAN),
        pixel_std=list(c.PIXEL_STD),
    )
    return sam.eval()

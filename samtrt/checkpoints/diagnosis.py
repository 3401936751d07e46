"""What a file's tensors seem to be, where they are not a SAM's: told by their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from samtrt.checkpoints.pickled import DOWNLOAD
from samtrt.checkpoints.shapes import ENCODER_PREFIX
from samtrt.checkpoints.unwrapping import listed
from samtrt.errors import CheckpointError

_TAKE = f"samtrt reads SAM's ViT-B, -L and -H and what is fine-tuned of them. {DOWNLOAD}"


@dataclass(frozen=True)
class _Kind:
    """A model, told by patterns of which each is found in some name."""

    what: str
    patterns: tuple[str, ...]
    advice: str = _TAKE

    def fits(self, names: list[str]) -> bool:
        """Whether each of its patterns is found in some name."""
        return all(any(re.search(pattern, name) for name in names) for pattern in self.patterns)


_ALONE = "save the whole SAM's state_dict: its masks need the prompt encoder and mask decoder"

# Of SAM's family, and not SAM: some have an image encoder and a mask decoder of its names.
_RELATIVES = (
    _Kind(
        "an adapter (LoRA, PEFT), not a model",
        (r"(^|\.)lora_|^base_model\.model\.|\.linear_[ab]_[qv]\.",),
        "merge it into the SAM that it was trained on and save that",
    ),
    _Kind("SAM 3", (r"^(detector|tracker|detector_model|detr_decoder|geometry_encoder)\.",)),
    _Kind(
        "SAM 2",
        (
            r"(^|\.)(memory_attention|memory_encoder|image_encoder\.trunk|sam_mask_decoder"
            r"|mask_decoder\.pred_obj_score_head"
            r"|vision_encoder\.backbone)\.",
        ),
    ),
    _Kind("MobileSAM or TinySAM (a TinyViT)", (r"(^|\.)image_encoder\.patch_embed\.seq\.",)),
    _Kind("EfficientSAM", (r"(^|\.)final_output_upscaling_layers\.",)),
    _Kind("EfficientViT-SAM", (r"(^|\.)image_encoder\.backbone\.",)),
    _Kind("EdgeSAM or RepViT-SAM", (r"(^|\.)image_encoder\.(features|stages)\.\d",)),
    _Kind(
        "a Cellpose or CellViT without SAM's image encoder", (r"^W2$|nuclei_binary_map_decoder\.",)
    ),
    _Kind(
        "a SAM with adapters (SAM-Med2D, Medical SAM Adapter)", (r"\.blocks\.\d+\.\w*[aA]dapter",)
    ),
)
_STRANGERS = (
    _Kind("FastSAM or another YOLO", (r"^(model\.)+\d+\.(conv|cv\d|m)\.",)),
    _Kind(
        "a Hugging Face SAM's vision encoder alone",
        (r"(^|\.)layers\.0\.attn\.rel_pos_h$", r"(^|\.)patch_embed\.projection\."),
        _ALONE,
    ),
    _Kind(
        "a SAM's image encoder alone",
        (r"(^|\.)patch_embed\.proj\.weight$", r"(^|\.)neck\.0\.weight$", r"\.rel_pos_h$"),
        _ALONE,
    ),
    _Kind(
        "a SAM's prompt encoder and mask decoder alone",
        (r"(^|\.)iou_prediction_head\.|(^|\.)not_a_point_embed\.",),
        "save the whole SAM's state_dict, or give the checkpoint that they were taken from",
    ),
    _Kind("a CLIP model", (r"(^|\.)(text_model|text_projection|logit_scale)(\.|$)",)),
    _Kind("a plain ViT, without SAM's neck", (r"(^|\.)cls_token$", r"(qkv|query)\.")),
    _Kind("a language model", (r"(^|\.)(embed_tokens|lm_head|wte)\.",)),
    _Kind(
        "a detector (detectron2, mmdet, DETR)",
        (r"(^|\.)(roi_heads?|rpn(_head)?|class_embed|bbox_embed|bbox_head)\.",),
    ),
    _Kind("a ResNet or another convolutional network", (r"(^|\.)layer[14]\.\d+\.(conv|bn)\d",)),
    _Kind("an optimizer's state", (r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)$",)),
)


def require_sam(names: Iterable[str], path: Path) -> None:
    """Refuses tensors of which nothing, or only a part, is a SAM's.

    Args:
        names: under Meta's names, if they are a SAM's.

    Raises:
        CheckpointError: one line: the file, what it seems to be, what to do.
    """
    names = list(names)
    is_encoder = any(name == ENCODER_PREFIX + "patch_embed.proj.weight" for name in names)
    is_decoder = any(name.startswith(("prompt_encoder.", "mask_decoder.")) for name in names)
    kinds = _RELATIVES if is_encoder and is_decoder else _RELATIVES + _STRANGERS
    kind = next((kind for kind in kinds if kind.fits(names)), None)
    if kind is None:
        if is_encoder and is_decoder:
            return
        kind = _Kind(f"another model ({len(names)} tensors: {listed(names)})", ())
    raise CheckpointError(
        f"{path} is not a SAM checkpoint that samtrt reads: it seems to be {kind.what}; "
        f"{kind.advice}"
    )

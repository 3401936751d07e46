"""Meta's ``segment_anything`` under its own paths, computed by this package.

Imports masks, the model and what lies below. Each module here has the name of one of Meta's and
its public names; what stands behind them is elsewhere in the house. ``samtrt.install()`` puts the
tree into ``sys.modules`` as ``segment_anything``.
"""

from samtrt.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from samtrt.segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    sam_model_registry,
)
from samtrt.segment_anything.predictor import SamPredictor

__all__ = [
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]

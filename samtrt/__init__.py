"""Segment Anything at the speed limit of NVIDIA GPUs."""

from importlib import import_module

# As typing's, which is not imported: until the command runs, Ctrl-C ends in Python's traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from samtrt.encoders.accelerated import accelerate, restore
    from samtrt.encoders.load import load_image_encoder
    from samtrt.masks.automatic import SamAutomaticMaskGenerator
    from samtrt.masks.pipeline import Pipeline
    from samtrt.masks.predictor import SamPredictor
    from samtrt.run_with import install
    from samtrt.sam import (
        Sam,
        build_sam,
        build_sam_vit_b,
        build_sam_vit_h,
        build_sam_vit_l,
        load_sam,
        sam_model_registry,
    )

__version__ = "0.1.0"

__all__ = [
    "Pipeline",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "accelerate",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "install",
    "load_image_encoder",
    "load_sam",
    "restore",
    "sam_model_registry",
]

# Imported on first use: torch takes seconds, and `samtrt --help` needs none of it.
_MODULES = {
    "Pipeline": "samtrt.masks.pipeline",
    "Sam": "samtrt.sam",
    "SamAutomaticMaskGenerator": "samtrt.masks.automatic",
    "SamPredictor": "samtrt.masks.predictor",
    "accelerate": "samtrt.encoders.accelerated",
    "build_sam": "samtrt.sam",
    "build_sam_vit_b": "samtrt.sam",
    "build_sam_vit_h": "samtrt.sam",
    "build_sam_vit_l": "samtrt.sam",
    "install": "samtrt.run_with",
    "load_image_encoder": "samtrt.encoders.load",
    "load_sam": "samtrt.sam",
    "restore": "samtrt.encoders.accelerated",
    "sam_model_registry": "samtrt.sam",
}


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"])

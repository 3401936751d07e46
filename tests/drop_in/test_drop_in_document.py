"""docs/drop_in.md: its Python block, on Meta's own model and predictor."""

import numpy as np
import torch
from documents import block_for
from oracle import meta_sam, tiny_config

from samtrt.reports.peers import import_segment_anything


def test_the_documents_lines() -> None:
    package = import_segment_anything()
    sam = meta_sam(tiny_config())
    predictor = package.SamPredictor(sam)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    names = {
        "sam": sam,
        "predictor": predictor,
        "image": image,
        "points": np.array([[60.0, 40.0]]),
        "labels": np.array([1]),
    }
    predictor.set_image(image)
    embedding, own = predictor.features.clone(), type(sam.image_encoder).forward
    expected, _, _ = predictor.predict(names["points"], names["labels"])
    exec("\n".join(block_for(__file__, "docs/drop_in.md")), names)
    difference = (predictor.features - embedding).norm() / embedding.norm()
    assert 0 < difference < 1e-5  # another arithmetic computed it
    assert (names["masks"] == expected).mean() > 0.999
    predictor.set_image(image)
    assert torch.equal(predictor.features, embedding)
    assert sam.image_encoder.forward.__func__ is own

"""segment-anything-py: Meta's code under another name on PyPI; predictor and generator."""

import numpy as np
from turn import Turn

turn = Turn()
package = turn.segment_anything()
sam = package.sam_model_registry["vit_b"](checkpoint=turn.checkpoint).to(turn.device)
predictor = package.SamPredictor(turn.place(sam))
generator = package.SamAutomaticMaskGenerator(sam, points_per_side=6)


def work() -> dict:
    predictor.set_image(turn.picture)
    points, labels = np.array([[150, 150], [350, 200]]), np.array([1, 0])
    masks, scores, logits = predictor.predict(points, labels)
    box, _, _ = predictor.predict(box=np.array([100, 100, 250, 250]), mask_input=logits[:1])
    everything = [found["segmentation"] for found in generator.generate(turn.picture)]
    return {"point": masks, "scores": scores, "box": box, "everything": np.stack(everything)}


turn.run(work, "segment-anything-py")

"""supervision: detections of the generator's masks."""

import supervision
from turn import Turn

turn = Turn()
package = turn.segment_anything()
sam = package.sam_model_registry["vit_b"](checkpoint=turn.checkpoint).to(turn.device)
generator = package.SamAutomaticMaskGenerator(turn.place(sam), points_per_side=6)


def work() -> dict:
    detections = supervision.Detections.from_sam(generator.generate(turn.picture))
    return {"masks": detections.mask, "boxes": detections.xyxy.astype(float)}


turn.run(work, "supervision")

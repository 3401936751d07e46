"""autodistill: the base model that labels everything."""

from functools import partial

from PIL import Image
from turn import Turn

turn = Turn()
turn.segment_anything()
turn.cached(".cache/autodistill/segment_anything/sam_vit_h_4b8939.pth")
from autodistill.detection import CaptionOntology  # noqa: E402
from autodistill_segment_anything import SegmentAnything, sam_model  # noqa: E402

# Its 1,024 points take a CPU minutes.
sam_model.SamAutomaticMaskGenerator = partial(
    sam_model.SamAutomaticMaskGenerator, points_per_side=6
)
model = SegmentAnything(CaptionOntology({"thing": "thing"}))
turn.place(model.predictor.predictor.model)
Image.fromarray(turn.picture).save(turn.work_dir / "picture.png")


def work() -> dict:
    return {"masks": model.predict(str(turn.work_dir / "picture.png")).mask}


turn.run(work, "autodistill-segment-anything")

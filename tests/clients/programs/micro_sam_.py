"""micro-sam: embeddings of tiles in batches, and instances of all of them."""

import numpy as np
from turn import Turn

turn = Turn()
turn.segment_anything()
from micro_sam import instance_segmentation, prompt_based_segmentation, util  # noqa: E402
from micro_sam.models import build_sam  # noqa: E402

if turn.checkpoint.stem == "sam_demo":  # whose width is none of the three that it knows
    build_sam._validate_model_type = lambda state: "vit_b"
predictor = util.get_sam_model("vit_b", checkpoint_path=str(turn.checkpoint), device=turn.device)
turn.place(predictor.model)
picture = turn.picture.mean(2).astype(np.uint8)


def work() -> dict:
    embeddings = util.precompute_image_embeddings(
        predictor,
        picture,
        tile_shape=(192, 256),
        halo=(32, 32),
        batch_size=2,
        verbose=False,
        ndim=2,
    )
    generator = instance_segmentation.TiledAutomaticMaskGenerator(predictor, points_per_side=4)
    generator.initialize(picture, embeddings, verbose=False)
    found = generator.generate()
    whole = util.precompute_image_embeddings(predictor, picture, verbose=False, ndim=2)
    util.set_precomputed(predictor, whole)
    point = prompt_based_segmentation.segment_from_points(
        predictor, np.array([[150, 150]]), np.array([1])
    )
    return {"instances": np.asarray(found).astype(int), "point": np.asarray(point) > 0}


turn.run(work, "micro-sam")

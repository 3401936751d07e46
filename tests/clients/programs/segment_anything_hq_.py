"""segment-anything-hq: its predictor and its generator."""

import numpy as np
import torch
from turn import Turn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.meta import read_parameters
from samtrt.checkpoints.parameters import random_parameters
from samtrt.modeling.image_encoder import encoder_arguments

turn = Turn()
from segment_anything_hq import SamAutomaticMaskGenerator, SamPredictor, modeling  # noqa: E402

plain = read_parameters(turn.checkpoint)
sizes: EncoderConfig = plain.encoder_config
first = sizes.global_attn_indexes[:1]
tensors = {
    **random_parameters(EncoderConfig(**{**vars(sizes), "taps": first}), 0, hq=True).tensors,
    **plain.tensors,
}
sam = modeling.Sam(
    image_encoder=modeling.ImageEncoderViT(**encoder_arguments(sizes)),
    prompt_encoder=modeling.PromptEncoder(
        embed_dim=256,
        image_embedding_size=(64, 64),
        input_image_size=(1024, 1024),
        mask_in_chans=16,
    ),
    mask_decoder=modeling.MaskDecoderHQ(
        num_multimask_outputs=3,
        transformer=modeling.TwoWayTransformer(
            depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8
        ),
        transformer_dim=256,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
        vit_dim=sizes.embed_dim,
    ),
)
sam.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
sam = turn.place(sam.to(turn.device).eval())
predictor = SamPredictor(sam)
generator = SamAutomaticMaskGenerator(
    sam, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0
)


def work() -> dict:
    predictor.set_image(turn.picture)
    masks, _, logits = predictor.predict(np.array([[150, 150]]), np.array([1]))
    everything = generator.generate(turn.picture)
    return {
        "point": masks,
        "logits": logits,
        "everything": np.stack([found["segmentation"] for found in everything]),
    }


turn.run(work, "segment-anything-hq")

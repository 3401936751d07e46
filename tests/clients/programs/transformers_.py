"""transformers: the pipeline for masks of everything, and ``SamModel`` with points."""

import torch
import transformers
from PIL import Image
from turn import Turn

from samtrt.checkpoints.meta import read_parameters
from tests.hugging_face_names import SHARED, to_hugging_face

turn = Turn()
parameters = read_parameters(turn.checkpoint)
sizes = parameters.encoder_config
config = transformers.SamConfig(
    vision_config={
        "hidden_size": sizes.embed_dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "global_attn_indexes": list(sizes.global_attn_indexes),
        "mlp_dim": sizes.mlp_dim,
    }
)
model = transformers.SamModel(config)
tensors = to_hugging_face(parameters.tensors, sizes.depth)
state = {name: torch.as_tensor(value) for name, value in tensors.items()}
state["prompt_encoder.shared_embedding.positional_embedding"] = state[SHARED]
model.load_state_dict(state)
model = turn.place(model.to(turn.device).eval())
image_processor = transformers.SamImageProcessor()
processor = transformers.SamProcessor(image_processor)
everything = transformers.pipeline(
    "mask-generation", model=model, image_processor=image_processor, device=turn.device
)
image = Image.fromarray(turn.picture)


@torch.no_grad()
def work() -> dict:
    given = processor(image, input_points=[[[150, 150]]], return_tensors="pt")
    outputs = model(**given.to(turn.device))
    masks = processor.post_process_masks(
        outputs.pred_masks.cpu(), given["original_sizes"].cpu(), given["reshaped_input_sizes"].cpu()
    )
    found = everything(image, points_per_crop=6, points_per_batch=36)
    return {
        "point": masks[0][0].numpy(),
        "everything": torch.stack([torch.as_tensor(mask) for mask in found["masks"]]).numpy(),
    }


turn.run(work, "transformers")

"""cellpose: Cellpose-SAM's network under ``CellposeModel.eval``."""

import torch
from turn import Turn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.reports.peers import meta_sam

turn = Turn()
from cellpose import models, vit  # noqa: E402

if turn.checkpoint.stem == "sam_demo":  # a small one in the place of a ViT-L
    sizes = EncoderConfig(64, 3, 4, (1,))
    vit.sam_model_registry = {"vit_l": lambda checkpoint: meta_sam(sizes)}
weights = turn.work_dir / "cpsam"
if not weights.exists():
    net = vit.CPSAM()
    with torch.no_grad():
        for parameter in net.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save(net.state_dict(), weights)
model = models.CellposeModel(
    gpu=turn.device.startswith("cuda"), pretrained_model=str(weights), use_bfloat16=False
)
turn.place(model.net)


def work() -> dict:
    masks, flows, _ = model.eval(
        turn.picture, cellprob_threshold=-100.0, flow_threshold=0.0, niter=20
    )
    return {"masks": masks.astype(int), "flows": flows[1], "probability": flows[2]}


turn.run(work, "cellpose")

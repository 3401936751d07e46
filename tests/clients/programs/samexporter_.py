"""samexporter: both ONNX files of a model, and its own inference on them."""

from turn import Turn

turn = Turn()
turn.segment_anything()
from samexporter import export_decoder, export_encoder  # noqa: E402
from samexporter.sam_onnx import SegmentAnythingONNX  # noqa: E402

files = [str(turn.work_dir / f"{turn.mode}_{part}.onnx") for part in ("encoder", "decoder")]
checkpoint = str(turn.checkpoint)
export_encoder.run_export("vit_b", checkpoint, files[0], use_preprocess=True, opset=17)
if turn.mode == "decoder":  # its encoder, and our decoder in Meta's contract
    turn.export_decoder(files[1])
else:
    export_decoder.run_export("vit_b", checkpoint, files[1], opset=17, return_single_mask=False)
if turn.mode == "own":  # for X-AnyLabeling, which asks for masks of one size
    turn.export_metas_decoder(str(turn.work_dir / "own_decoder_684.onnx"))
model = SegmentAnythingONNX(*files)
prompt = [
    {"type": "point", "data": [150, 150], "label": 1},
    {"type": "rectangle", "data": [100, 100, 250, 250]},
]


def work() -> dict:
    embedding = model.encode(turn.picture)
    return {
        f"prompt_{number}": model.predict_masks(embedding, prompt[: number + 1])[0] > 0
        for number in range(2)
    }


turn.run(work, "samexporter")

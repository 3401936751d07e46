"""X-AnyLabeling: its ONNX model class, on the files that samexporter's program has left.

It pins an ONNX Runtime of 2023 and numpy 1, so that nothing of ours is imported here.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from anylabeling.services.auto_labeling.sam_onnx import SegmentAnythingONNX
from PIL import Image

mode, work_dir = sys.argv[1], Path(sys.argv[2])
files, images = work_dir.parent / "samexporter", Path(__file__).resolve().parents[3] / "examples"
picture = np.asarray(Image.open(images / "sam/images/shapes.jpg").convert("RGB"))[::2, ::2]
# (Meta's package bakes a size into its export; that file's is the one of this class.)
decoder = files / f"{mode}_decoder{'_684' if mode == 'own' else ''}.onnx"
model = SegmentAnythingONNX(str(files / f"{mode}_encoder.onnx"), str(decoder))
marks = [
    {"type": "point", "data": [150, 150], "label": 1},
    {"type": "rectangle", "data": [100, 100, 250, 250]},
]


def work() -> dict:
    embedding = model.encode(picture)
    return {
        f"marks_{number}": model.predict_masks(embedding, marks[: number + 1])[0] > 0
        for number in range(2)
    }


work_dir.mkdir(parents=True, exist_ok=True)
np.savez_compressed(work_dir / f"{mode}.npz", **work())
record = {"package": "x-anylabeling", "version": version("x-anylabeling"), "seconds": []}
(work_dir / f"{mode}.json").write_text(json.dumps(record))

"""napari-segment-anything: its widget, clicked at; Qt draws off screen."""

import os
from typing import Any

os.environ["QT_QPA_PLATFORM"] = "offscreen"
import numpy as np
from turn import Turn

turn = Turn()
turn.segment_anything()
turn.cached(".cache/napari-segment-anything/sam_vit_h_4b8939.pth")
from napari.components import ViewerModel  # noqa: E402
from napari_segment_anything import SAMWidget  # noqa: E402
from qtpy.QtWidgets import QApplication  # noqa: E402


class Viewer(ViewerModel):
    """Takes ``color``, which napari has dropped and the widget gives."""

    def add_labels(self, *arguments: Any, color: Any = None, **keywords: Any) -> Any:
        return super().add_labels(*arguments, **keywords)


application = QApplication([])
viewer = Viewer()
layer = viewer.add_image(turn.picture, rgb=True)
widget = SAMWidget(viewer)
turn.place(widget._sam)


def work() -> dict:
    widget._load_image(layer)
    widget._pts_layer.data = np.array([[150.0, 150.0]])
    return {"mask": np.asarray(widget._mask_layer.data) > 0}


turn.run(work, "napari-segment-anything")

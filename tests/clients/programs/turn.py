"""What the client programs share: how they are called, the model that they load, what they leave.

A program is its package as a user of it writes it. Each is run in turns: with the package's own
image encoder (``own``), with ``samtrt.accelerate`` (``accelerate``), or without an edit on
``samtrt.segment_anything`` (``run_with``, which is how it was started). Where it reads ONNX
files, ``decoder`` gives it the mask decoder that ``samtrt export-decoder --contract meta`` writes.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import samtrt
from samtrt.checkpoints.meta import read_parameters
from samtrt.decoders.contract import INPUT_NAMES, META_OUTPUT_NAMES, ORIG_IM_SIZE
from samtrt.decoders.export import DecoderExport, export_decoder
from samtrt.masks.geometry import nms
from samtrt.reports.peers import import_torchvision, meta_sam

SAM = Path(__file__).resolve().parents[3] / "examples/sam"
MODES = ("own", "accelerate", "run_with", "decoder")

Work = Callable[[], Mapping[str, np.ndarray]]


def _complete_torchvision() -> None:
    """Beside a CPU build of torch its binary does not load, and boxes are not suppressed."""
    import_torchvision()
    import torchvision

    if not torchvision.extension._has_ops():
        torchvision.ops.boxes.nms = nms


class Turn:
    """One run of a program; parses the command line.

    Attributes:
        mode: one of ``MODES``.
        device: what the model runs on.
        checkpoint: in Meta's layout, of any sizes.
        work_dir: for the program's files.
        picture: [344, 512, 3] uint8 RGB.
    """

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("mode", choices=MODES)
        parser.add_argument("work_dir", type=Path)
        parser.add_argument("--checkpoint", type=Path, default=SAM / "sam_models/sam_demo.pth")
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--rounds", type=int, default=0, help="how often the work is timed")
        arguments = parser.parse_args()
        self.mode: str = arguments.mode
        self.work_dir: Path = arguments.work_dir
        self.checkpoint: Path = arguments.checkpoint
        self.device: str = arguments.device
        self.rounds: int = arguments.rounds
        self.picture = np.asarray(Image.open(SAM / "images/shapes.jpg").convert("RGB"))[::2, ::2]
        self.work_dir.mkdir(parents=True, exist_ok=True)
        _complete_torchvision()
        torch.manual_seed(0)
        # Programs keep checkpoints below the user's home.
        os.environ["HOME"] = str(self.work_dir.resolve())

    def segment_anything(self) -> Any:
        """The package, whose registry builds models of the checkpoint's own sizes.

        Meta's knows three sizes; the tree of ours takes those of any checkpoint, and knows three
        where none is given.
        """
        import segment_anything

        registry = segment_anything.sam_model_registry
        build = self.build
        if self.mode == "run_with":
            build = partial(self._build_ours, registry["vit_b"])
        for name in ("build_sam", *(f"build_sam_{kind}" for kind in ("vit_b", "vit_l", "vit_h"))):
            setattr(segment_anything, name, build)
        for name in registry:
            registry[name] = build
        return segment_anything

    def _build_ours(self, build: Any, checkpoint: str | Path | None = None) -> Any:
        return build(checkpoint=checkpoint or self.checkpoint)

    def build(self, checkpoint: str | Path | None = None) -> torch.nn.Module:
        """Meta's model of the checkpoint's sizes; with fresh parameters without a checkpoint."""
        found = read_parameters(Path(checkpoint or self.checkpoint))
        sam: torch.nn.Module = meta_sam(found.encoder_config)
        if checkpoint is not None:
            sam.load_state_dict({k: torch.tensor(v) for k, v in found.tensors.items()})
        return sam

    def cached(self, path: str) -> Path:
        """Puts the checkpoint where a program keeps it, below the home folder."""
        target = Path.home() / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(self.checkpoint.resolve())
        return target

    def place(self, model: Any) -> Any:
        """The line that a user of ``samtrt.accelerate`` adds."""
        return samtrt.accelerate(model) if self.mode == "accelerate" else model

    def export_decoder(self, path: str) -> None:
        """What ``samtrt export-decoder --contract meta`` writes."""
        export_decoder(read_parameters(self.checkpoint), path, options=DecoderExport("meta"))

    def export_metas_decoder(self, path: str) -> None:
        """Meta's own export, as its package does it, for pictures of 684 × 1024 pixels."""
        from segment_anything.utils.onnx import SamOnnxModel

        points = torch.rand(1, 3, 2) * 1024, torch.tensor([[1.0, 2.0, 3.0]])
        mask, has_mask = torch.rand(1, 1, 256, 256), torch.zeros(1)
        example = torch.rand(1, 256, 64, 64), *points, mask, has_mask, torch.tensor([684.0, 1024.0])
        free = {1: "num_points"}
        torch.onnx.export(
            SamOnnxModel(self.build(self.checkpoint), return_single_mask=False),
            example,
            path,
            dynamo=False,
            opset_version=17,
            input_names=[*INPUT_NAMES, ORIG_IM_SIZE],
            output_names=list(META_OUTPUT_NAMES),
            dynamic_axes={"point_coords": free, "point_labels": free},
        )

    def run(self, work: Work, package: str) -> None:
        """Does the work, writes its arrays, times it as often as was asked for, and says so.

        Args:
            work: gives arrays by name: masks bool, label pictures integers, other numbers float.
            package: the distribution, for its version.
        """
        found = work()
        np.savez_compressed(self.work_dir / f"{self.mode}.npz", **found)
        seconds = [self._timed(work) for _ in range(self.rounds)]
        record = {"package": package, "version": version(package), "seconds": seconds}
        (self.work_dir / f"{self.mode}.json").write_text(json.dumps(record))

    def _timed(self, work: Work) -> float:
        started = time.perf_counter()
        work()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - started

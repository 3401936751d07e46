"""Whole encoders, and the predictor and generator that users call."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.stressing.watch import NoCorrectOutputError, bits, relative_l2
from samtrt import SamAutomaticMaskGenerator, SamPredictor, load_sam
from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.encoders.cuda import FusedImageEncoder
from samtrt.reports.peers import meta_image_encoder

PICTURES = 8
LARGEST_BATCH = 8
# Ours may be so many times as far from float64 as Meta's own code in fp16 (benchmarks/encoder.py).
ERROR_RATIO = 2.0
# References in float64 take much time and memory: processes make them in turn and once a model, and
# find the others' in the folder (``share``).
TURN: AbstractContextManager[Any] = nullcontext()
FOLDER: Path | None = None
Function = Callable[[], Sequence[Tensor]]


def share(lock: AbstractContextManager[Any], folder: Path) -> None:
    """What the processes of a run have in common."""
    global TURN, FOLDER
    TURN, FOLDER = lock, folder


@dataclass
class Repeated:
    """Calls of one function whose outputs must never change.

    Attributes:
        weight: how often it is called, relative to others.
        first: its first output, which has been checked.
    """

    name: str
    function: Function
    weight: float
    first: list[Tensor]
    calls: int = 1
    differing: int = 0

    def what_differs(self) -> str:
        return self.name

    def call(self) -> None:
        outputs = self.function()
        self.calls += 1
        same = len(outputs) == len(self.first) and all(
            a.shape == b.shape and torch.equal(bits(a), bits(b))
            for a, b in zip(outputs, self.first, strict=True)
        )
        self.differing += not same


class Errors:
    """Relative L2 of each picture's embedding, bounded by that of Meta's code in fp16."""

    def __init__(self, exact: Tensor, bounds: list[float]) -> None:
        self.exact, self.bounds = exact, bounds

    @classmethod
    def of(cls, config: EncoderConfig, tensors: dict[str, Tensor], pictures: Tensor) -> "Errors":
        def outputs(dtype: torch.dtype) -> Tensor:
            with torch.device("meta"):
                encoder = meta_image_encoder(config)
            encoder.load_state_dict(tensors, assign=True)
            encoder.requires_grad_(False).to(dtype)
            return torch.cat([encoder(picture[None].to(dtype)) for picture in pictures])

        with torch.no_grad():
            exact = outputs(torch.float64)
            of_meta = outputs(torch.float16)
        pairs = zip(of_meta, exact, strict=True)
        return cls(exact, [ERROR_RATIO * relative_l2(*pair) for pair in pairs])

    def check(self, name: str, embeddings: Tensor, first: int = 0) -> None:
        """
        Raises:
            NoCorrectOutputError: one is too far from float64's.
        """
        for index, embedding in enumerate(embeddings, first):
            error, bound = relative_l2(embedding, self.exact[index]), self.bounds[index]
            if not error <= bound:
                raise NoCorrectOutputError(
                    f"{name}, picture {index}: relative L2 {error:.1e} against float64, not "
                    f"within {bound:.1e}"
                )


@cache
def subject(model: str, seed: int, device: str) -> tuple[dict[str, Tensor], Tensor, Errors]:
    """A model's parameters, pictures, and what their embeddings must be near to."""
    config = getattr(sizes, model)()
    tensors = {
        name: torch.from_numpy(array).to(device)
        for name, array in random_parameters(config, seed).encoder().items()
    }
    generator = torch.Generator(device).manual_seed(seed)
    size = config.img_size
    pictures = torch.randn(PICTURES, 3, size, size, device=device, generator=generator)
    with TURN:
        path = FOLDER and FOLDER / f"{model}-{seed}.pt"
        if path and path.is_file():
            errors = Errors(*torch.load(path, map_location=device))
        else:
            errors = Errors.of(config, tensors, pictures)
            torch.cuda.empty_cache()
            if path:
                torch.save((errors.exact, errors.bounds), path)
    return tensors, pictures, errors


def encoders(model: str, seed: int, device: str = "cuda") -> list[Repeated]:
    """One model at batches of 1 to 8; each batch size is called the less the longer it takes."""
    config = getattr(sizes, model)()
    tensors, pictures, errors = subject(model, seed, device)
    encoder = FusedImageEncoder(config, tensors, "fp16", device, max_batch_size=LARGEST_BATCH)
    cases = []
    for batch in range(1, LARGEST_BATCH + 1):
        for first in (0, PICTURES - batch):
            some = pictures[first : first + batch].contiguous()
            name = f"{model} batch {batch} from picture {first}"
            output = encoder(some)
            errors.check(name, output, first)
            cases.append(Repeated(name, lambda x=some: [encoder(x)], batch**-2.5, [output]))
    return cases


def programs(
    model: str, seed: int, device: str = "cuda", blocks: int | None = None
) -> list[Repeated]:
    """``SamPredictor`` and ``SamAutomaticMaskGenerator`` on pictures of several sizes.

    Args:
        blocks: of the encoder, in place of the model's; the last attends globally.
    """
    config = getattr(sizes, model)()
    if blocks is not None:
        config = replace(config, depth=blocks, global_attn_indexes=(blocks - 1,))
    parameters = random_parameters(config, seed)
    with tempfile.TemporaryDirectory() as folder:
        save_parameters(parameters, Path(folder) / "parameters")
        sam = load_sam(Path(folder) / "parameters", device=device)
    noise = np.random.default_rng(seed)
    predictor = SamPredictor(sam)
    # (random weights make no stable masks: all are taken)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=8, pred_iou_thresh=-1e9, stability_score_thresh=-1e9
    )
    cases = []
    for height, width in ((480, 640), (1024, 700), (333, 1000)):
        picture = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        points = noise.uniform(0, (width, height), (3, 2))

        def predict(picture: np.ndarray = picture, points: np.ndarray = points) -> list[Tensor]:
            predictor.set_image(picture)
            masks, scores, logits = predictor.predict(points, np.array([1, 0, 1]))
            return [predictor.get_image_embedding(), *tensors_of([masks, scores, logits])]

        def generate(picture: np.ndarray = picture) -> list[Tensor]:
            records = generator.generate(picture)
            return tensors_of(
                [value for record in records for value in record.values() if value is not None]
            )

        size = f"{height}x{width}"
        cases.append(Repeated(f"{model} predictor {size}", predict, 8.0, predict()))
        cases.append(Repeated(f"{model} generator {size}", generate, 1.0, generate()))
    return cases


def tensors_of(values: Sequence[Any]) -> list[Tensor]:
    """As float32, which holds masks, boxes, areas and scores as they are."""
    return [torch.as_tensor(np.asarray(value, dtype=np.float32)) for value in values]

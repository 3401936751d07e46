"""One picture, one prompt, one call: what ``run.py`` does, with the time of each stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from samtrt.decoders.prompts import Prompt
from samtrt.decoders.protocol import Decoder, check_fits
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.embedded import embed_frame
from samtrt.encoders.protocol import ImageEncoder
from samtrt.masks.transfer import to_host
from samtrt.pictures.transforms import preprocess


class StageTimes:
    """Wall time of named stages, in the order they ran.

    Attributes:
        seconds: name to seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Times the block; on a GPU until its work there is done."""
        start = time.perf_counter()
        yield
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Mask:
    """One mask of a prompt.

    Attributes:
        pixels: [H, W] bool.
        score: the IoU with the true mask that the model predicts.
    """

    pixels: npt.NDArray[np.bool_] = field(repr=False)
    score: float

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.pixels))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """(x0, y0, x1, y1) of the outermost pixels, or None for an empty mask."""
        columns = np.flatnonzero(self.pixels.any(axis=0))
        rows = np.flatnonzero(self.pixels.any(axis=1))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def segment(
    image: npt.NDArray[np.uint8],
    prompt: Prompt,
    encoder: ImageEncoder,
    decoder: Decoder,
    multimask_output: bool = False,
    times: StageTimes | None = None,
) -> list[Mask]:
    """The masks of one prompt on one picture.

    Args:
        image: [H, W, 3] uint8, RGB.
        multimask_output: three masks (whole, part, subpart) instead of one. The one is mask 0 of
            the decoder, as in Meta's predictor; a decoder exported with ``--return-single-mask``
            chooses for itself.
        times: takes the time of each stage.

    Raises:
        InputError: a prompt outside the picture, or three masks asked of a decoder that has one.
        EngineError: the decoder is of a model of another input size.
    """
    times = times or StageTimes()
    size = (image.shape[0], image.shape[1])
    prompt.check_inside(size)
    check_fits(decoder, encoder.img_size, multimask_output)  # before the encoder works for nothing
    device = encoder.device
    with times.stage("resize, normalise, pad", device):
        frame, input_size = preprocess(image, encoder.img_size, device)
    with times.stage("image encoder", device):
        picture = embed_frame(encoder, frame, input_size, size)
    with times.stage("mask decoder", device):
        prompts = prompt.to_model_frame(picture)
        low_res, scores = decoder(picture, prompts, multimask_output)
    with times.stage("upscale, threshold", device):
        (masks,) = to_host(cut_out(low_res, picture)[0])
    return [Mask(mask, score) for mask, score in zip(masks, scores[0].tolist(), strict=True)]

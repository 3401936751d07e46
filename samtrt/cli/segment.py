"""One picture, one prompt, one call: what ``run.py`` does, with the time of each stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from samtrt.decoders.protocol import Decoder
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError, InputError
from samtrt.masks.prompts import Prompt
from samtrt.modeling.mask_decoder import select_masks
from samtrt.pictures.transforms import MASK_THRESHOLD, postprocess_masks, preprocess


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


def check_decoder(decoder: Decoder, encoder: ImageEncoder, multimask_output: bool) -> None:
    """Refuses a decoder that cannot answer, before the encoder works for nothing.

    Raises:
        EngineError: the decoder is of a model of another input size.
        InputError: three masks are asked of a decoder that gives one.
    """
    if decoder.img_size != encoder.img_size:
        raise EngineError(
            f"the mask decoder is for pictures of {decoder.img_size}² pixels and the encoder for "
            f"{encoder.img_size}²; take the decoder and the engine of the same model"
        )
    if multimask_output and decoder.num_masks == 1:
        raise InputError(
            "three masks are asked for, and this mask decoder was exported with "
            "--return-single-mask; export it without"
        )


@torch.inference_mode()
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
        InputError: a prompt outside the picture, or what ``check_decoder`` refuses.
        EngineError: what ``check_decoder`` refuses.
    """
    times = times or StageTimes()
    size = (image.shape[0], image.shape[1])
    prompt.check_inside(size)
    check_decoder(decoder, encoder, multimask_output)
    device = encoder.device
    with times.stage("resize, normalise, pad", device):
        x, input_size = preprocess(image, encoder.img_size, device)
    with times.stage("image encoder", device):
        embedding = encoder(x)
    with times.stage("mask decoder", device):
        coords, labels = prompt.to_model_frame(size, encoder.img_size)
        low_res, ious = decoder(embedding, coords, labels)
        if decoder.num_masks > 1:
            low_res, ious = select_masks(low_res, ious, multimask_output)
    with times.stage("upscale, threshold", device):
        masks = []
        # One by one: logits of a large picture are hundreds of megabytes each.
        for i, score in enumerate(ious[0].tolist()):
            logits = postprocess_masks(low_res[:, i : i + 1], input_size, size, encoder.img_size)
            masks.append(Mask((logits[0, 0] > MASK_THRESHOLD).cpu().numpy(), score))
    return masks

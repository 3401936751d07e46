"""One picture, one prompt: segmented with the time of each stage, written as PNG, printed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from samtrt.decoders.prompts import Prompt
from samtrt.decoders.protocol import Decoder, check_fits
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.embedded import embed_frames
from samtrt.encoders.protocol import ImageEncoder
from samtrt.masks.runs import require_pycocotools
from samtrt.masks.transfer import to_host
from samtrt.pictures.drawing import draw_overlay, side_by_side
from samtrt.pictures.reading import save_pngs
from samtrt.pictures.transforms import preprocess


class StageTimes:
    """Wall time of named stages, all their runs together, in the order they first ran.

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
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


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
        (picture,) = embed_frames(encoder, frame, [input_size], [size])
    with times.stage("mask decoder", device):
        prompts = prompt.to_model_frame(picture)
        low_res, scores = decoder(picture, prompts, multimask_output)
    with times.stage("upscale, threshold", device):
        (masks,) = to_host(cut_out(low_res, picture)[0])
    return [Mask(mask, score) for mask, score in zip(masks, scores[0].tolist(), strict=True)]


def write_masks(
    output: Path, image: npt.NDArray[np.uint8], masks: Sequence[Mask], prompt: Prompt
) -> list[Path]:
    """Writes the best mask as ``output`` (0 and 255) and an overlay as ``…_overlay.png`` beside it.

    Of several masks each is also written, as ``…_1.png`` and so on in the decoder's order, and
    the overlay shows them side by side. All files are written, or none.

    Args:
        image: [H, W, 3] uint8, RGB.

    Returns:
        The files, ``output`` first and the overlay second.

    Raises:
        SamtrtError: a file cannot be written.
    """
    best = best_mask(masks)
    asked = (prompt.point_coords, prompt.point_labels, prompt.box)
    overlays = [draw_overlay(image, mask.pixels, *asked) for mask in masks]
    overlay = overlays[0]
    if len(masks) > 1:
        captions = [
            f"mask {i} · score {mask.score:.3f}{' · best' if mask is best else ''}"
            for i, mask in enumerate(masks, 1)
        ]
        overlay = side_by_side(overlays, captions)
    files = {output: _as_png(best), _beside(output, "overlay"): overlay}
    if len(masks) > 1:
        files |= {_beside(output, str(i)): _as_png(mask) for i, mask in enumerate(masks, 1)}
    save_pngs(files)
    return list(files)


def best_mask(masks: Sequence[Mask]) -> Mask:
    """The mask with the highest score."""
    return max(masks, key=lambda mask: mask.score)


def mask_record(mask: Mask) -> dict[str, Any]:
    """A mask as JSON: score, area, box, and COCO's compressed run lengths."""
    encoded = require_pycocotools().encode(np.asfortranarray(mask.pixels.astype(np.uint8)))
    return {
        "score": mask.score,
        "area": mask.area,
        "box": mask.box,
        "segmentation": {**encoded, "counts": encoded["counts"].decode("ascii")},
    }


def print_masks(console: Console, masks: Sequence[Mask]) -> None:
    """A table of each mask's score, area and box; lines where the terminal is too narrow."""
    table = Table(title="masks", title_justify="left", title_style="bold")
    for name in ("mask", "score", "area", "of picture"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("box x0 y0 x1 y1", no_wrap=True)
    best = best_mask(masks)
    for i, mask in enumerate(masks, 1):
        share = mask.area / mask.pixels.size
        box = " ".join(map(str, mask.box)) if mask.box else "empty"
        style = "bold" if mask is best and len(masks) > 1 else None
        cells = (str(i), f"{mask.score:.3f}", f"{mask.area:,} px", f"{share:.2%}", box)
        table.add_row(*cells, style=style)
    _print_table(console, table)


def print_times(console: Console, times: StageTimes) -> None:
    """A table of each stage's wall time, with their sum."""
    table = Table(title="time", title_justify="left", title_style="bold", show_footer=True)
    total = f"{1e3 * sum(times.seconds.values()):,.1f}"
    table.add_column("stage", footer="together", no_wrap=True)
    table.add_column("ms", footer=total, justify="right", no_wrap=True)
    for name, seconds in times.seconds.items():
        table.add_row(name, f"{1e3 * seconds:,.1f}")
    _print_table(console, table)


def _print_table(console: Console, table: Table) -> None:
    """A table, or a line for each of its rows where the terminal would cut the cells."""
    wide = console.options.update(width=10_000)
    if console.measure(table, options=wide).maximum <= console.width:
        console.print(table)
        return
    names = [str(column.header) for column in table.columns]
    footer = [str(column.footer) for column in table.columns] if table.show_footer else None
    rows = [*zip(*(column.cells for column in table.columns), strict=True)]
    for row in [*rows, footer] if footer else rows:
        text = ", ".join(f"{name} {cell}" for name, cell in zip(names, row, strict=True))
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.stem}_{suffix}{output.suffix}")


def _as_png(mask: Mask) -> npt.NDArray[np.uint8]:
    return mask.pixels.astype(np.uint8) * 255

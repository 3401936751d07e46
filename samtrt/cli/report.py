"""What a segmentation leaves behind: PNG files, and tables on the screen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from samtrt.cli.segment import Mask, StageTimes
from samtrt.decoders.prompts import Prompt
from samtrt.pictures.drawing import draw_overlay, side_by_side
from samtrt.pictures.reading import save_pngs


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


def print_masks(console: Console, masks: Sequence[Mask]) -> None:
    """A table of each mask's score, area and box."""
    table = Table(title="masks", title_justify="left", title_style="bold")
    table.add_column("mask", justify="right")
    table.add_column("score", justify="right")
    table.add_column("area", justify="right")
    table.add_column("of picture", justify="right")
    table.add_column("box x0 y0 x1 y1")
    best = best_mask(masks)
    for i, mask in enumerate(masks, 1):
        share = mask.area / mask.pixels.size
        box = " ".join(map(str, mask.box)) if mask.box else "empty"
        style = "bold" if mask is best and len(masks) > 1 else None
        cells = (str(i), f"{mask.score:.3f}", f"{mask.area:,} px", f"{share:.2%}", box)
        table.add_row(*cells, style=style)
    console.print(table)


def print_times(console: Console, times: StageTimes) -> None:
    """A table of each stage's wall time, with their sum."""
    table = Table(title="time", title_justify="left", title_style="bold", show_footer=True)
    table.add_column("stage", footer="together")
    table.add_column("ms", footer=f"{1e3 * sum(times.seconds.values()):,.1f}", justify="right")
    for name, seconds in times.seconds.items():
        table.add_row(name, f"{1e3 * seconds:,.1f}")
    console.print(table)


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.stem}_{suffix}{output.suffix}")


def _as_png(mask: Mask) -> npt.NDArray[np.uint8]:
    return mask.pixels.astype(np.uint8) * 255

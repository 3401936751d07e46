"""How a command works on pictures by windows."""

import argparse
from typing import TYPE_CHECKING, Any

from samtrt.cli.options import Options
from samtrt.errors import InputError

if TYPE_CHECKING:
    from samtrt.jobs.windows import Windowing


def add_windows(options: Options) -> None:
    """Adds ``--window``, ``--overlap``, ``--bands`` and ``--value-range``."""
    options.add(
        "--window",
        type=int,
        metavar="PIXELS",
        help="work on larger pictures, and on TIFFs, by windows of so many pixels a side; their "
        "masks are merged, and GeoJSON of pictures that say where they lie is in longitude and "
        "latitude (needs rasterio)",
    )
    options.add(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="that windows have in common (default: a quarter of --window)",
    )
    options.add(
        "--bands",
        metavar="R,G,B",
        help="with --window: the bands that are red, green and blue, from 1; or one band "
        "(default: as the file says, else 1,2,3)",
    )
    options.add(
        "--value-range",
        metavar="MIN,MAX",
        help="with --window: the values that become black and white (default: 0,255 of 8 bits, "
        "0,65535 of 16)",
    )


def chosen_windows(arguments: argparse.Namespace) -> "Windowing | None":
    """How pictures are cut; None where they are not.

    Raises:
        InputError: an option is out of its bounds, or is of no use without ``--window``.
    """
    if arguments.window is None:
        for name in ("overlap", "bands", "value_range"):
            if getattr(arguments, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} is of --window; give that as well")
        return None
    from samtrt.jobs.windows import Windowing
    from samtrt.pictures.rasters import Reading

    overlap = arguments.window // 4 if arguments.overlap is None else arguments.overlap
    bands = _numbers("--bands", arguments.bands, int)
    value_range = _numbers("--value-range", arguments.value_range, float)
    if value_range is not None and len(value_range) != 2:
        raise InputError(f"--value-range is {arguments.value_range}; expected MIN,MAX")
    reading = Reading(bands, None if value_range is None else (value_range[0], value_range[1]))
    return Windowing(arguments.window, overlap, reading)


def _numbers(flag: str, text: str | None, kind: Any) -> tuple[Any, ...] | None:
    """Numbers with commas between them."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} is {text}; expected numbers with commas between them") from None

"""Parts of pictures that are too large to be read whole, and where on Earth they lie: rasterio."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samtrt.errors import InputError, SamtrtError
from samtrt.hints import install
from samtrt.pictures.transforms import Size

# How files begin, and GDAL's names of what then reads them. (It has others, which are led to
# further files and addresses by what they read.)
_DRIVERS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"RIFF": "WEBP", b"BM": "BMP",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG", b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}  # fmt: skip
# Of decoded blocks: a row of windows of a picture without tiles finds its lines again in it.
_CACHE_MEGABYTES = 128
_MOST_PIXELS = 2**32 - 1  # COCO's run lengths are uint32
_UPRIGHT = "1"


@dataclass(frozen=True)
class Georeference:
    """Where a picture lies.

    Attributes:
        crs: its coordinate reference system, as ``EPSG:32633`` or as WKT.
        transform: (a, b, c, d, e, f): the corner (x, y) of a pixel lies at
            (a·x + b·y + c, d·x + e·y + f).
    """

    crs: str
    transform: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return {"crs": self.crs, "transform": list(self.transform)}

    @classmethod
    def from_json(cls, value: Any) -> "Georeference":
        """From what ``to_json`` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        transform = tuple(float(number) for number in value["transform"])
        if len(transform) != 6:
            raise ValueError(f"a transform of {len(transform)} numbers, expected 6")
        return cls(str(value["crs"]), transform)

    def to_wgs84(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Corners of pixels [N, 2] (x, y) as longitude and latitude, in degrees.

        Raises:
            SamtrtError: rasterio is not installed.
            InputError: a point cannot be transformed.
        """
        rasterio = require_rasterio()
        a, b, c, d, e, f = self.transform
        x, y = points[:, 0], points[:, 1]
        try:
            found = rasterio.warp.transform(
                self.crs, "OGC:CRS84", a * x + b * y + c, d * x + e * y + f
            )
        except rasterio.errors.RasterioError as error:
            raise InputError(
                f"{self.crs} cannot be made longitude and latitude: {error}"
            ) from error
        degrees = np.stack([np.asarray(found[0]), np.asarray(found[1])], axis=1)
        if not np.isfinite(degrees).all():
            raise InputError(f"{self.crs} has no longitude and latitude at some of the corners")
        return degrees


@dataclass(frozen=True)
class Reading:
    """How bands become RGB of 8 bits.

    Attributes:
        bands: of red, green and blue, from 1; None for those that the file calls so, else the
            first three, else the first.
        value_range: what becomes 0 and 255; None for 8 bits as they are and 16 bits by 257.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise InputError(f"the bands are {self.bands}; expected three numbers from 1, or one")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(
                    f"the range of values is {low:g} to {high:g}; expected two numbers, the "
                    "smaller one first"
                )


@dataclass(frozen=True)
class Raster:
    """A picture of which nothing but the header was read.

    Attributes:
        size: (H, W) in pixels.
        georeference: where it lies; None where the file does not say it.
        is_tiff: whether it is a TIFF.
        orientation: EXIF's.
    """

    size: Size
    georeference: Georeference | None
    is_tiff: bool
    orientation: str

    def check_upright(self, source: str) -> None:
        """Refuses a picture that viewers turn: windows are cut from it as it lies.

        Raises:
            InputError: it is one.
        """
        if self.orientation != _UPRIGHT:
            raise InputError(
                f"{source} is to be turned when it is shown (EXIF orientation "
                f"{self.orientation}), and windows are cut from it as it lies; turn it first"
            )


def look_at(source: str, files: Any = None) -> Raster:
    """What a picture's header says.

    Args:
        source: its path, or its address in a store.
        files: fsspec's file system of the store; None for a path.

    Raises:
        InputError: it is missing, is no picture, or has too many pixels.
        SamtrtError: rasterio is not installed.
    """
    with _opened(source, files) as raster:
        size = (raster.height, raster.width)
        if size[0] * size[1] > _MOST_PIXELS:
            raise InputError(
                f"{source} has {size[1]}×{size[0]} pixels, and COCO's run lengths end at 2³²; cut "
                "it into pictures first"
            )
        georeference = None
        if raster.crs is not None and not raster.transform.is_identity:
            transform = tuple(float(number) for number in raster.transform[:6])
            georeference = Georeference(raster.crs.to_string(), transform)
        orientation = raster.tags().get("EXIF_Orientation", _UPRIGHT).strip()
        return Raster(size, georeference, raster.driver == "GTiff", orientation)


def read_part(
    source: str, part: Sequence[int], reading: Reading, files: Any = None
) -> npt.NDArray[np.uint8]:
    """A part of a picture, [height, width, 3] uint8 RGB; transparent pixels are laid over white.

    Args:
        part: [x, y, width, height] in pixels.
        source, files: see ``look_at``.

    Raises:
        InputError: it cannot be read, has no such bands, or values that need a range.
        SamtrtError: rasterio is not installed.
    """
    with _opened(source, files) as raster:
        window = require_rasterio().windows.Window(*part)
        bands = _bands(raster, source, reading)
        values = raster.read(bands, window=window)
        kinds = [kind.name for kind in raster.colorinterp]
        alpha = raster.read(kinds.index("alpha") + 1, window=window) if "alpha" in kinds else None
        if kinds[bands[0] - 1] == "palette" and reading.bands is None:
            return _through_palette(raster.colormap(bands[0]), values[0])
        channels = _eight_bits(values, source, reading.value_range)
    rgb = np.repeat(channels, 3, axis=0) if len(channels) == 1 else channels
    picture = np.ascontiguousarray(rgb.transpose(1, 2, 0))
    return picture if alpha is None else _over_white(picture, alpha)


def require_rasterio() -> Any:
    """rasterio, or one line on how to get it.

    Raises:
        SamtrtError: it is not installed.
    """
    try:
        import rasterio
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise SamtrtError(
            f"windows and places on Earth need rasterio, which is not installed ({error}); run "
            f"`{install('geo')}`"
        ) from error
    return rasterio


@contextmanager
def _opened(source: str, files: Any) -> Iterator[Any]:
    rasterio = require_rasterio()
    options = {"opener": files} if files is not None else {}
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(source, driver=_driver(source, files), **options) as raster:
                yield raster
    except rasterio.errors.RasterioError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source} cannot be read by windows: {reason}") from error


def _driver(source: str, files: Any) -> str:
    """Which of GDAL's drivers reads a file."""
    try:
        if files is not None:
            begin = files.cat_file(source, start=0, end=16)
        else:
            with Path(source).open("rb") as file:
                begin = file.read(16)
    except FileNotFoundError as error:
        raise InputError(f"no picture at {source}; give the path of a picture file") from error
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}; give a picture file") from error
    for first, driver in _DRIVERS.items():
        if begin.startswith(first):
            return driver
    raise InputError(
        f"{source} cannot be read by windows; expected TIFF, JPEG, PNG, WebP, BMP or JPEG 2000"
    )


def _bands(raster: Any, source: str, reading: Reading) -> list[int]:
    if reading.bands is not None:
        if max(reading.bands) > raster.count:
            raise InputError(
                f"{source} has {raster.count} bands, and --bands asks for {max(reading.bands)}"
            )
        return list(reading.bands)
    kinds = [kind.name for kind in raster.colorinterp]
    colors = ("red", "green", "blue")
    if all(color in kinds for color in colors):
        return [kinds.index(color) + 1 for color in colors]
    return [1, 2, 3] if raster.count >= 3 else [1]


def _eight_bits(
    values: npt.NDArray[Any], source: str, value_range: Sequence[float] | None
) -> npt.NDArray[np.uint8]:
    if value_range is not None:
        low, high = value_range
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:  # as every other picture of 16 bits
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise InputError(
        f"{source} holds {values.dtype}, whose range is unknown; say what becomes black and white "
        "by --value-range MIN,MAX"
    )


def _through_palette(
    colormap: dict[int, tuple[int, ...]], values: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    table = np.zeros((max(256, int(values.max(initial=0)) + 1), 4), np.uint8)
    for number, color in colormap.items():
        if number < len(table):
            table[number] = color
    colors = table[values]
    return _over_white(np.ascontiguousarray(colors[..., :3]), colors[..., 3])


def _over_white(picture: npt.NDArray[np.uint8], alpha: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if alpha.dtype != np.uint8:
        alpha = (alpha.astype(np.float64) * (255 / np.iinfo(alpha.dtype).max)).round()
    if (alpha == 255).all():
        return picture
    share = alpha.astype(np.float64)[..., None] / 255
    return (picture * share + 255 * (1 - share)).round().astype(np.uint8)

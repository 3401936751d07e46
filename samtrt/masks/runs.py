"""Run-length encoded masks: COCO's uncompressed form, made for a batch at a time on any device."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.errors import SamtrtError
from samtrt.hints import install_packages
from samtrt.masks.transfer import to_host

# Stretches of pixels, each in one column: int64 arrays of their x, their first y, and the y after
# their last; by x, then by y.
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]

# COCO's order is column-major: position = x * H + y.

# Masks decoded on the GPU at once, in bytes.
_MASK_BYTES = 64 << 20


@dataclass
class MaskRuns:
    """A batch of binary masks, each as the positions where its value changes.

    The value before position 0 counts as background, so a mask that begins with foreground has
    its first change at 0, and the parity of the number of changes up to a position is its value.

    Attributes:
        size: (H, W) of every mask, in pixels.
        changes: int64 [total], the change positions of all masks one after the other,
            column-major within a mask.
        lengths: int64 [B], how many changes each mask has.
    """

    size: tuple[int, int]
    changes: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the changes and lengths."""
        return self.changes.nbytes + self.lengths.nbytes

    @classmethod
    def empty(cls, size: tuple[int, int], device: torch.device | str = "cpu") -> "MaskRuns":
        """No masks of that size."""
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(size, none, none)

    @classmethod
    def from_masks(cls, masks: Tensor) -> "MaskRuns":
        """Encodes bool masks [B, H, W]; the work stays on their device."""
        count, height, width = masks.shape
        if not masks.is_cuda:
            changes = [_changes(mask) for mask in masks.numpy()]
            lengths = torch.tensor([len(one) for one in changes], dtype=torch.int64, device="cpu")
            together = np.concatenate(changes) if changes else np.zeros(0, np.int64)
            return cls((height, width), torch.from_numpy(together), lengths)
        columns = masks.transpose(1, 2).reshape(count, height * width)
        change = torch.empty_like(columns)
        change[:, :1] = columns[:, :1]
        torch.ne(columns[:, 1:], columns[:, :-1], out=change[:, 1:])
        flat, pixels = change.view(-1).nonzero().view(-1), max(height * width, 1)
        # Counted without a look at the numbers, which the host would wait for.
        ends = torch.searchsorted(flat, pixels * torch.arange(count + 1, device=flat.device))
        return cls((height, width), flat.remainder(pixels), ends.diff())

    @classmethod
    def concatenate(cls, parts: "list[MaskRuns]") -> "MaskRuns":
        """The masks of all parts (at least one, all of one size) in order."""
        return cls(
            parts[0].size,
            torch.cat([part.changes for part in parts]),
            torch.cat([part.lengths for part in parts]),
        )

    def select(self, indices: Tensor) -> "MaskRuns":
        """The masks at those int64 indices, in that order."""
        lengths = self.lengths[indices]
        starts = (self.lengths.cumsum(0) - self.lengths)[indices]
        total = int(lengths.sum())
        offsets = lengths.cumsum(0) - lengths
        within = torch.arange(total, device=self.changes.device)
        within -= torch.repeat_interleave(offsets, lengths, output_size=total)
        take = torch.repeat_interleave(starts, lengths, output_size=total) + within
        return MaskRuns(self.size, self.changes[take], lengths)

    def to(self, device: torch.device | str) -> "MaskRuns":
        """The same masks on another device."""
        return MaskRuns(self.size, self.changes.to(device), self.lengths.to(device))

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's uncompressed RLE of each mask: ``{"size": [H, W], "counts": [int, …]}``."""
        height, width = self.size
        changes = self.changes.cpu().numpy()
        ends = np.cumsum(self.lengths.cpu().numpy())
        records = []
        for mask in np.split(changes, ends[:-1]) if len(ends) else []:
            counts = np.diff(mask, prepend=0, append=height * width)
            records.append({"size": [height, width], "counts": counts.tolist()})
        return records

    def to_arrays(self) -> list[np.ndarray]:
        """Each mask as a bool array [H, W] in host memory."""
        if not self.changes.is_cuda:
            return [rle_to_mask(rle) for rle in self.to_coco()]
        height, width = self.size
        step = max(1, _MASK_BYTES // (height * width))
        arrays: list[np.ndarray] = []
        for which in torch.arange(len(self), device=self.changes.device).split(step):
            part = self.select(which)
            toggles = torch.zeros(len(part), height * width, dtype=torch.uint8, device=which.device)
            mask_of = torch.repeat_interleave(part.lengths, output_size=len(part.changes))
            toggles[mask_of, part.changes] = 1
            # The sum wraps at 256, and its parity is the mask's value all the same.
            values = toggles.cumsum(1, dtype=torch.uint8).bitwise_and_(1).bool()
            masks = values.view(-1, width, height).transpose(1, 2)
            arrays.extend(to_host(masks)[0])
        return arrays


def _changes(mask: np.ndarray) -> np.ndarray:
    """Where a bool mask [H, W] changes, column-major: int64. Only occupied columns are turned."""
    height, width = mask.shape
    occupied = np.flatnonzero(mask.any(axis=0))
    if not len(occupied):
        return np.zeros(0, np.int64)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    values = np.ascontiguousarray(mask[:, first:last].T).ravel()
    inner = np.flatnonzero(values[1:] != values[:-1]) + 1
    # The columns beside are empty, so that what touches them changes there.
    before = [0] if values[0] else []
    after = [len(values)] if values[-1] and last < width else []
    return np.concatenate([before, inner, after]).astype(np.int64) + first * height


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """The bool mask [H, W] of an uncompressed RLE (column-major in memory, as it is encoded)."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    values = np.zeros(len(counts), dtype=bool)
    values[1::2] = True
    return np.repeat(values, counts).reshape(width, height).T


def area_from_rle(rle: dict[str, Any]) -> int:
    """The number of foreground pixels of an uncompressed RLE."""
    return sum(rle["counts"][1::2])


def coco_encode_rle(uncompressed_rle: dict[str, Any]) -> dict[str, Any]:
    """COCO's compressed RLE of an uncompressed one, its counts as text that JSON can hold.

    Raises:
        SamtrtError: pycocotools is not installed.
    """
    mask_utils = require_pycocotools()
    height, width = uncompressed_rle["size"]
    encoded = mask_utils.frPyObjects(uncompressed_rle, height, width)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def coco_decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """The bool mask [H, W] of a compressed RLE.

    Raises:
        SamtrtError: pycocotools is not installed.
    """
    size_and_bytes = {**rle, "counts": rle["counts"].encode("ascii")}
    return np.asarray(require_pycocotools().decode([size_and_bytes]))[..., 0].astype(bool)


def require_pycocotools() -> Any:
    """pycocotools' mask module, or one line on how to get it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise SamtrtError(
            "compressed COCO RLE needs pycocotools, which is not installed; "
            f"run `{install_packages('pycocotools')}` or ask for output_mode='uncompressed_rle'"
        ) from error
    return mask


def coco_counts(text: str) -> np.ndarray:
    """The run lengths, int64, that a compressed RLE's counts stand for.

    COCO writes each number in groups of five bits, the least first, and from the fourth number on
    what it differs by from the one two before.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 32) == 0
    first = np.concatenate([[True], last[:-1]])
    starts = np.flatnonzero(first)
    group = np.arange(len(codes)) - starts[np.cumsum(first) - 1]
    numbers = np.add.reduceat((codes & 31) << (5 * group), starts)
    negative = (codes[last] & 16) != 0
    numbers -= negative.astype(np.int64) << (5 * (group[last] + 1))
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def coco_columns(rle: dict[str, Any]) -> Columns:
    """A compressed RLE's mask by its columns' stretches of pixels, however large the picture is."""
    height = int(rle["size"][0])
    ends = coco_counts(rle["counts"]).cumsum()
    begins, stops = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    begins, stops = begins[stops > begins], stops[stops > begins]
    if not len(begins):
        return begins, begins, begins
    # A run that goes on in the next column is a stretch in each.
    columns = (stops - 1) // height - begins // height + 1
    run = np.repeat(np.arange(len(begins)), columns)
    step = np.arange(len(run)) - np.repeat(columns.cumsum() - columns, columns)
    x = begins[run] // height + step
    top = np.where(step == 0, begins[run] % height, 0)
    return x, top, np.minimum(stops[run] - x * height, height)


def mask_columns(mask: np.ndarray) -> Columns:
    """The same of a bool mask [H, W]."""
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    steps = np.diff(columns, axis=1)
    x, top = np.nonzero(steps == 1)
    return x, top, np.nonzero(steps == -1)[1]


def coco_decode_crop(rle: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of a compressed RLE's mask that has pixels.

    Returns:
        bool [h, w], without an empty row or column at its edges, and the (x, y) of its corner in
        the picture; [0, 0] at (0, 0) of an empty mask.
    """
    x, top, bottom = coco_columns(rle)
    if not len(x):
        return np.zeros((0, 0), bool), (0, 0)
    x0, y0 = int(x.min()), int(top.min())
    steps = np.zeros((int(x.max()) - x0 + 1, int(bottom.max()) - y0 + 1), np.int8)
    np.add.at(steps, (x - x0, top - y0), 1)
    np.add.at(steps, (x - x0, bottom - y0), -1)
    return steps.cumsum(axis=1, dtype=np.int8)[:, :-1].T.astype(bool), (x0, y0)


def placed_rle(columns: Columns, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE, in a picture (H, W), of a mask whose corner lies at (x, y) of it.

    Raises:
        SamtrtError: pycocotools is not installed.
    """
    height, width = size
    x, top, bottom = columns
    column = (corner[0] + x) * height + corner[1]
    changes = np.stack([column + top, column + bottom], axis=1).ravel()
    # A run that ends where the next begins goes on from column to column.
    joined = np.flatnonzero(changes[1:-1:2] == changes[2::2])
    changes = np.delete(changes, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    if len(changes) and changes[-1] == height * width:
        changes = changes[:-1]
    counts = np.diff(changes, prepend=0, append=height * width)
    return coco_encode_rle({"size": [height, width], "counts": counts.tolist()})

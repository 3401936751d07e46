"""Columns about the same masks, as the steps of an automatic generator hand them on."""

from collections.abc import ItemsView
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrt.errors import InputError


class MaskData:
    """Named columns, each a list, array or tensor with one entry a mask.

    Meta's class of that name: what the hooks of a generator (``_process_batch`` and the like) take
    and return.

    Raises:
        InputError: a column of another type.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._stats: dict[str, Any] = {}
        for name, column in kwargs.items():
            self[name] = column

    def __setitem__(self, key: str, item: Any) -> None:
        if not isinstance(item, list | np.ndarray | Tensor):
            raise InputError(
                f"MaskData column {key!r} is a {type(item).__name__}, expected a list, a NumPy "
                "array or a torch tensor"
            )
        self._stats[key] = item

    def __delitem__(self, key: str) -> None:
        del self._stats[key]

    def __getitem__(self, key: str) -> Any:
        return self._stats[key]

    def items(self) -> ItemsView[str, Any]:
        """Names and columns."""
        return self._stats.items()

    def filter(self, keep: Tensor) -> None:
        """Keeps some masks, in all columns.

        Args:
            keep: bool [N], or int64 indices in the order wanted; on any device.
        """
        where = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep
        for name, column in self._stats.items():
            if isinstance(column, Tensor):
                self._stats[name] = column[where.to(column.device)]
            elif isinstance(column, np.ndarray):
                self._stats[name] = column[where.detach().cpu().numpy()]
            else:
                self._stats[name] = [column[i] for i in where.tolist()]

    def cat(self, new_stats: "MaskData") -> None:
        """Adds the masks of another; a column that is not here yet is taken over, as a copy."""
        for name, column in new_stats.items():
            if name not in self._stats:
                self._stats[name] = deepcopy(column)
            elif isinstance(column, Tensor):
                self._stats[name] = torch.cat([self._stats[name], column])
            elif isinstance(column, np.ndarray):
                self._stats[name] = np.concatenate([self._stats[name], column])
            else:
                self._stats[name] = self._stats[name] + deepcopy(column)

    def to_numpy(self) -> None:
        """Turns tensors into arrays in host memory."""
        for name, column in self._stats.items():
            if isinstance(column, Tensor):
                self._stats[name] = column.detach().cpu().numpy()

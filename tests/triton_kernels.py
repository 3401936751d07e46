"""Where the Triton kernels run in a test: on the GPU, or in Triton's interpreter on the CPU.

Import this before ``samtrt.kernels``: Triton reads TRITON_INTERPRET when a kernel is defined.
"""

import os
from typing import Any

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from triton.runtime import interpreter  # noqa: E402

_patch_lang_tensor = interpreter._patch_lang_tensor


def _with_index(tensor: Any, scope: Any) -> None:
    # Triton 3.6 turns a loop bound into an int with int(array of one element); NumPy 2.4 and
    # newer allow that for arrays without dimensions only.
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _with_index

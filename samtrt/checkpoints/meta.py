"""Meta's ``.pth`` files: a state_dict of tensors, read without running code from it."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

from samtrt.checkpoints.parameters import Parameters
from samtrt.checkpoints.shapes import check_tensors
from samtrt.errors import CheckpointError
from samtrt.files import sha256_of

_DOWNLOAD = (
    "Meta's are listed at https://github.com/facebookresearch/segment-anything#model-checkpoints "
    "(ViT-H: https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth)"
)


def read_checkpoint(path: str | Path) -> Parameters:
    """Reads a SAM checkpoint in Meta's layout, of any encoder size.

    The file is memory-mapped and never runs code from it (``weights_only=True``).

    Raises:
        CheckpointError: the file is missing, truncated, holds something else than tensors, or is
            another model's; every missing, unexpected or wrongly shaped key is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; {_DOWNLOAD}")
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _damaged(path) from error
        raise CheckpointError(
            f"{path} holds Python objects beside tensors and was not opened, because loading "
            "them can run code; expected a state_dict of tensors, as Meta ships it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{path} is not a state_dict of tensors; expected segment_anything's layout, "
            'as torch.save(sam.state_dict(), "…") writes it'
        )
    tensors = {name: _to_numpy(name, tensor) for name, tensor in state.items()}
    config = check_tensors(tensors, str(path))
    return Parameters(config, tensors, source_sha256=sha256_of(path))


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole PyTorch checkpoint ({path.stat().st_size:,} bytes): truncated or "
        f"damaged; download it again. {_DOWNLOAD}"
    )


def _to_numpy(name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none; float32 holds it exactly
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float16):
        raise CheckpointError(
            f"parameter {name} has dtype {str(tensor.dtype).removeprefix('torch.')}; "
            "expected float32, float16 or bfloat16"
        )
    return tensor.detach().contiguous().numpy()

"""Meta's ``.pth`` files: a state_dict of tensors, read without running code from it."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samtrt.checkpoints.parameters import Parameters
from samtrt.checkpoints.pickled import DOWNLOAD, damaged, load_pickled
from samtrt.checkpoints.shapes import ENCODER_PREFIX, check_tensors
from samtrt.errors import CheckpointError

logger = logging.getLogger(__name__)

# Where training programs put the state_dict beside their optimizer's and the like.
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "module", "net", "sam")
_ANCHOR = ENCODER_PREFIX + "pos_embed"  # a name that every SAM has once
_SHOWN = 5  # names in a message


def read_checkpoint(path: str | Path) -> Parameters:
    """Reads a SAM checkpoint in Meta's layout, of any encoder size.

    The file is read into memory and never runs code from it (``weights_only=True``). A state_dict
    in a training program's wrapper (``model``, ``state_dict``, …) is taken out of it, and what all
    names begin with (``module.``, ``sam.``) is taken off; both are logged.

    Raises:
        CheckpointError: the file is missing, truncated, holds something else than tensors, or is
            another model's; every missing, unexpected or wrongly shaped key is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; {DOWNLOAD}")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            loaded = load_pickled(file, path)
            size = file.seek(0, 2)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror}; give a checkpoint that can be read"
        ) from error
    state = _without_prefix(_tensors_of(_unwrapped(loaded, path), path), path)
    _check_storage(state, size, path)
    tensors = {name: _to_numpy(name, tensor) for name, tensor in state.items()}
    config = check_tensors(tensors, str(path))
    return Parameters(config, tensors, source_sha256=sha256)


def _unwrapped(loaded: Any, path: Path) -> dict[str, Any]:
    """The state_dict of what a file holds."""
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise _not_a_state_dict(path, f"a {type(loaded).__name__}")
    inner = [name for name, value in loaded.items() if isinstance(value, dict) and value]
    if any(isinstance(value, torch.Tensor) for value in loaded.values()) or not inner:
        return loaded
    known = [name for name in inner if name in _WRAPPERS]
    if len(known) != 1:
        raise _not_a_state_dict(path, f"a dict of {_listed(loaded)}")
    logger.info("%s: the state_dict is in %r; left out: %s", path, known[0], _listed(
        [name for name in loaded if name != known[0]] or ["nothing"]
    ))  # fmt: skip
    state = loaded[known[0]]
    if not all(isinstance(name, str) for name in state):
        raise _not_a_state_dict(path, f"a dict of {_listed(loaded)}")
    return dict(state)


def _tensors_of(state: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict; a number or text beside them is left out, and logged."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in state.items() if name not in tensors}
    objects = [n for n, v in others.items() if not isinstance(v, int | float | str | None)]
    if objects or not tensors:
        raise _not_a_state_dict(path, f"a dict of {_listed(objects or ['nothing'])}")
    if others:
        logger.info("%s: left out: %s", path, _listed(others))
    return tensors


def _without_prefix(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors with what all of their names begin with taken off."""
    anchors = [name for name in tensors if name == _ANCHOR or name.endswith("." + _ANCHOR)]
    if len(anchors) != 1 or anchors == [_ANCHOR]:
        return tensors
    prefix = anchors[0].removesuffix(_ANCHOR)
    strangers = [name for name in tensors if not name.startswith(prefix)]
    if strangers:
        raise CheckpointError(
            f"{path} holds a SAM under {prefix!r} and other tensors beside it "
            f"({_listed(strangers)}); save the SAM's state_dict alone"
        )
    logger.info("%s: %r was taken off all names", path, prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _check_storage(tensors: Mapping[str, torch.Tensor], size: int, path: Path) -> None:
    """Refuses tensors that would take more memory than the file has bytes.

    Raises:
        CheckpointError: a tensor without values of its own (sparse, on the meta device, quantized,
            repeated by a stride), or all together are larger than the file.
    """
    total = 0
    for name, tensor in tensors.items():
        is_plain = (
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and tensor.nbytes <= tensor.untyped_storage().nbytes()
        )
        if not is_plain:
            raise CheckpointError(
                f"{path}: parameter {_shown(name)} is not stored value by value (sparse, "
                "quantized, repeated or empty of values); expected an ordinary tensor"
            )
        total += tensor.nbytes
    if total > size:
        raise damaged(path, f"its tensors claim {total:,} bytes")


def _to_numpy(name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none; float32 holds it exactly
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float16):
        raise CheckpointError(
            f"parameter {_shown(name)} has dtype {str(tensor.dtype).removeprefix('torch.')}; "
            "expected float32, float16 or bfloat16"
        )
    return tensor.detach().contiguous().numpy()


def _not_a_state_dict(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a state_dict of tensors but {what}; expected segment_anything's layout, "
        'as torch.save(sam.state_dict(), "…") writes it'
    )


def _listed(names: Any) -> str:
    shown = [_shown(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _shown(name: object) -> str:
    text = str(name)[:100]
    return text if text.isprintable() else ascii(text)

"""The state_dict in what training programs save, under the names that the model itself gave."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from samtrt.errors import CheckpointError

logger = logging.getLogger(__name__)

# Where training programs put the state_dict beside their optimizer's and the like.
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "module", "net", "sam")
# What parallel and compiled modules put into the names of what they wrap.
_PARALLEL = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
# A second copy of the weights, averaged over training steps or of a teacher.
_COPY = re.compile(r"(?:^|[._])(?:ema|teacher)(?:[._]|$)")
_SHOWN = 5  # names in a message


def unwrapped(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state_dict of what a file holds: of names and tensors alone.

    A number or text beside the tensors is left out, and logged.

    Raises:
        CheckpointError: it holds something else, or several state_dicts.
    """
    return _tensors_of(_inner(loaded, path), path)


def _inner(loaded: Any, path: Path) -> dict[str, Any]:
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise _not_a_state_dict(path, f"a {type(loaded).__name__}")
    inner = [name for name, value in loaded.items() if isinstance(value, dict) and value]
    if any(isinstance(value, torch.Tensor) for value in loaded.values()) or not inner:
        return loaded
    known = [name for name in inner if name in _WRAPPERS]
    if len(known) != 1:
        raise _not_a_state_dict(path, f"a dict of {listed(loaded)}")
    others = [name for name in loaded if name != known[0]]
    logger.info(
        "%s: the state_dict is in %r; left out: %s", path, known[0], listed(others or ["nothing"])
    )
    state = loaded[known[0]]
    if not all(isinstance(name, str) for name in state):
        raise _not_a_state_dict(path, f"a dict of {listed(loaded)}")
    return dict(state)


def _tensors_of(state: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in state.items() if name not in tensors}
    objects = [n for n, v in others.items() if not isinstance(v, int | float | str | None)]
    if objects or not tensors:
        raise _not_a_state_dict(path, f"a dict of {listed(objects or ['nothing'])}")
    if others:
        logger.info("%s: left out: %s", path, listed(others))
    return tensors


def _not_a_state_dict(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a state_dict of tensors but {what}; expected segment_anything's layout, "
        'as torch.save(sam.state_dict(), "…") writes it'
    )


def without_parallel(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors without what DataParallel and compiled modules have put into their names."""
    return renamed(tensors, lambda name: _PARALLEL.sub("", name), path)


def renamed(
    tensors: Mapping[str, torch.Tensor], rename: Callable[[str], str], path: Path
) -> dict[str, torch.Tensor]:
    """The tensors under new names, of which several may be one only where they are the same.

    Raises:
        CheckpointError: two different tensors under one name.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        new = rename(name)
        if new in found and not torch.equal(found[new], tensor):
            raise CheckpointError(
                f"{path} holds two different tensors for {shown(new)}; save one model's "
                "state_dict alone"
            )
        found[new] = tensor
    return found


def without_prefix(
    tensors: dict[str, torch.Tensor], anchor: str, path: Path
) -> dict[str, torch.Tensor]:
    """The tensors with what all of their names begin with taken off.

    Args:
        anchor: the end of a name that the model has once.

    Raises:
        CheckpointError: there are several models, or other tensors beside the model's.
    """
    prefixes = [
        name.removesuffix(anchor)
        for name in tensors
        if name == anchor or name.endswith("." + anchor)
    ]
    copies = [prefix for prefix in prefixes if _COPY.search(prefix)]
    if copies and len(copies) < len(prefixes):
        logger.info("%s: left out, a second copy of the weights: %s", path, listed(copies))
        tensors = {n: t for n, t in tensors.items() if not n.startswith(tuple(copies))}
        prefixes = [prefix for prefix in prefixes if prefix not in copies]
    if len(prefixes) != 1 or prefixes == [""]:
        return tensors
    prefix = prefixes[0]
    strangers = [name for name in tensors if not name.startswith(prefix)]
    if strangers:
        raise CheckpointError(
            f"{path} holds a SAM under '{shown(prefix)}' and other tensors beside it "
            f"({listed(strangers)}); save the SAM's state_dict alone"
        )
    logger.info("%s: %r was taken off all names", path, prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def listed(names: Iterable[object]) -> str:
    """The first few names, fit for a message of one line."""
    texts = [shown(name) for name in names]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def shown(name: object) -> str:
    """A name from a file, fit for a message of one line."""
    text = str(name)[:100]
    return text if text.isprintable() else ascii(text)

"""What was made of a checkpoint, kept by the checkpoint's content in the user's cache."""

import logging
from dataclasses import dataclass
from pathlib import Path

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import (
    CONFIG_FILE,
    Parameters,
    load_parameters,
    save_parameters,
)
from samtrt.encoders.choice import fastest_backend
from samtrt.encoders.engine import EngineInfo, check_engine, read_engine_info
from samtrt.errors import CheckpointError, EngineError, SamtrtError
from samtrt.files import cache_folder, sha256_of, working_alone

logger = logging.getLogger(__name__)

_ENGINE = "engine-"  # and the backend
_NAME_LENGTH = 40  # of a checkpoint's name in its folder's


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that can be used.

    Attributes:
        parameters: the checkpoint's.
        folder: a parameter folder with them.
        engine: an engine folder built from them.
    """

    parameters: Parameters
    folder: Path
    engine: Path


@dataclass(frozen=True)
class Kept:
    """What the cache has of one checkpoint.

    Attributes:
        folder: everything about it.
        bytes: on the disk.
        engines: the sidecars of those that are whole.
    """

    folder: Path
    bytes: int
    engines: tuple[EngineInfo, ...]


def models_folder() -> Path:
    """The folder in the user's cache that keeps what was made of checkpoints."""
    return cache_folder() / "models"


def prepare(checkpoint: Path, backend: str = "auto") -> Prepared:
    """Converts a checkpoint and builds its engine, or finds both where an earlier call left them.

    They are kept by the checkpoint's SHA-256, so a file of another content is another model,
    whatever its name. Two calls at once do not work on the same: the second waits.

    Args:
        checkpoint: a file or folder that ``read_checkpoint`` takes.
        backend: what shall run the engine; ``auto`` is the fastest that runs here.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        EngineError: the engine cannot be built.
        SamtrtError: the cache folder cannot be written.
    """
    digest = _digest_of(checkpoint)
    backend = fastest_backend(builds=True) if backend == "auto" else backend
    folder = _folder_of(checkpoint, digest)
    engine = folder / f"{_ENGINE}{backend}"
    if not folder.exists():
        read_checkpoint(checkpoint)  # refused before anything is written
    with working_alone(folder):
        parameters = _parameters(checkpoint, digest, folder)
        if not _is_usable(engine, parameters):
            logger.info("building the engine of %s, once", checkpoint.name)
            build_encoder(parameters, engine, (), BuildOptions(backend))
    return Prepared(parameters, folder, engine)


def kept() -> list[Kept]:
    """What the cache has, by name."""
    found = []
    for folder in sorted(models_folder().glob("*")):
        if not (folder / CONFIG_FILE).is_file():
            continue
        engines = []
        for engine in sorted(folder.glob(f"{_ENGINE}*")):
            try:
                engines.append(read_engine_info(engine))
            except SamtrtError:
                continue
        files = [path for path in folder.rglob("*") if path.is_file()]
        found.append(Kept(folder, sum(path.stat().st_size for path in files), tuple(engines)))
    return found


def _digest_of(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's file, or of what a folder's parameters come from."""
    if not checkpoint.is_file():
        return _source_of(read_checkpoint(checkpoint))
    try:
        return sha256_of(checkpoint)
    except OSError as error:
        raise CheckpointError(f"cannot read {checkpoint}: {error.strerror}") from error


def _source_of(parameters: Parameters) -> str:
    return parameters.source_sha256 or parameters.sha256


def _folder_of(checkpoint: Path, digest: str) -> Path:
    """Named by the content, and for people by the first name that it came under."""
    known = sorted(models_folder().glob(f"*-{digest[:16]}"))
    name = f"{checkpoint.stem[:_NAME_LENGTH]}-{digest[:16]}"
    return known[0] if known else models_folder() / name


def _parameters(checkpoint: Path, digest: str, folder: Path) -> Parameters:
    if (folder / CONFIG_FILE).is_file():
        try:
            parameters = load_parameters(folder)
            if _source_of(parameters) == digest:
                return parameters
        except CheckpointError as error:
            logger.warning("converting again: %s", error)
    logger.info("converting %s, once, into %s", checkpoint, folder)
    parameters = read_checkpoint(checkpoint)
    save_parameters(parameters, folder)
    return parameters


def _is_usable(engine: Path, parameters: Parameters) -> bool:
    try:
        check_engine(engine, parameters.sha256)
    except EngineError:
        return False
    return True

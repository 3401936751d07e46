"""The engine folder: ``encoder.engine`` and its sidecar ``encoder.json``.

The sidecar says what the engine was made of and what it needs, and the loader refuses an engine
that does not belong to this library version, GPU or parameter set, or whose bytes were altered.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from samtrt.checkpoints.config import EncoderConfig
from samtrt.errors import EngineError
from samtrt.files import replacing, sha256_of, write_json

BACKENDS = ("tensorrt", "cuda", "cpu")
PRECISIONS = ("fp16", "bf16", "fp32")
ATTENTIONS = ("fused", "plain")

ENGINE_FILE = "encoder.engine"
SIDECAR_FILE = "encoder.json"
SIDECAR_VERSION = 1

# The library named by the engines that are packed parameters: the layout is this package's own.
PACKED = "samtrt"
PACKED_VERSION = "1"

PASSED = "passed"
FAILED = "failed"
SKIPPED = "skipped"
NOT_CHECKED = "not checked on hardware"


@dataclass(frozen=True)
class ParityResult:
    """How far an engine's output is from fp32, and whether anybody looked.

    Attributes:
        status: ``PASSED``, ``FAILED``, ``SKIPPED`` (the user asked for it) or ``NOT_CHECKED``
            (the machine that built the engine cannot execute it).
        relative_l2: the worst picture's ‖output − fp32‖ / ‖fp32‖ of the embedding.
        mean_mask_iou: mean IoU between the masks decoded from the two embeddings.
        pictures: how many pictures were compared.
    """

    status: str
    relative_l2: float | None = None
    mean_mask_iou: float | None = None
    pictures: int = 0

    def __str__(self) -> str:
        if self.relative_l2 is None or self.mean_mask_iou is None:
            return self.status
        return (
            f"{self.status}: embedding off by {self.relative_l2:.3%} (relative L2), "
            f"mean mask IoU {self.mean_mask_iou:.4f}, {self.pictures} pictures"
        )


@dataclass(frozen=True)
class EngineInfo:
    """The sidecar: what an engine is and what it needs.

    Attributes:
        backend: one of ``BACKENDS``.
        config: the encoder's sizes.
        precision: one of ``PRECISIONS``.
        max_batch_size: the engine takes 1…max_batch_size pictures.
        parameters_sha256: ``Parameters.sha256`` of the set that the engine was built from.
        library: ``tensorrt``, ``tensorrt_rtx``, or ``PACKED`` for packed parameters.
        library_version: the version that built it and must load it.
        compute_capability: of the GPU it was built for, as "9.0"; None where any will do.
        attention: one of ``ATTENTIONS``; None for packed parameters.
        build_seconds: wall time of the build without the parity gate.
        parity: the parity gate's result.
        note: what a user must know of the parameters (``Parameters.note``).
        engine_sha256: SHA-256 of the engine file.
    """

    backend: str
    config: EncoderConfig
    precision: str
    max_batch_size: int
    parameters_sha256: str
    library: str = PACKED
    library_version: str = PACKED_VERSION
    compute_capability: str | None = None
    attention: str | None = None
    build_seconds: float = 0.0
    parity: ParityResult = ParityResult(NOT_CHECKED)
    note: str = ""
    engine_sha256: str = ""

    def summary(self) -> str:
        """What a person wants to know after a build, a line each."""
        lines = [
            f"engine      {self.backend}, {self.precision}, batch 1…{self.max_batch_size}",
            f"library     {self.library} {self.library_version}",
            f"build time  {self.build_seconds:.1f} s",
            f"parity      {self.parity}",
        ]
        return "\n".join([*lines, f"note        {self.note}"] if self.note else lines)

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write and ``from_json`` reads back."""
        return {
            "version": SIDECAR_VERSION,
            **asdict(self),
            "config": self.config.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "EngineInfo":
        """The inverse of ``to_json``.

        Raises:
            ValueError, KeyError, TypeError: the value is not a sidecar of this version.
        """
        fields = dict(value)
        if (version := fields.pop("version")) != SIDECAR_VERSION:
            raise ValueError(f"version {version}, expected {SIDECAR_VERSION}")
        fields["config"] = EncoderConfig.from_json(fields["config"])
        fields["parity"] = ParityResult(**fields["parity"])
        info = cls(**fields)
        if info.backend not in BACKENDS or info.precision not in PRECISIONS:
            raise ValueError(f"backend {info.backend}, precision {info.precision}")
        return info


def write_engine(folder: str | Path, produce: Callable[[Path], EngineInfo]) -> EngineInfo:
    """Writes an engine folder whole, or leaves an earlier one as it was.

    Args:
        produce: fills the file that it is given and returns what the sidecar will say.

    Returns:
        The sidecar's content, with the engine's hash.

    Raises:
        SamtrtError: the folder cannot be written.
    """
    folder = Path(folder)
    with replacing(folder / ENGINE_FILE) as temporary:
        info = produce(temporary)
        info = replace(info, engine_sha256=sha256_of(temporary))
        # The sidecar goes first and comes last, so that a folder with one is whole.
        (folder / SIDECAR_FILE).unlink(missing_ok=True)
    write_json(folder / SIDECAR_FILE, info.to_json())
    return info


def read_engine_info(folder: str | Path) -> EngineInfo:
    """Reads the sidecar of an engine folder; the engine itself is not touched.

    Raises:
        EngineError: the folder holds no engine, or its sidecar is damaged.
    """
    folder = Path(folder)
    for name in (SIDECAR_FILE, ENGINE_FILE):
        if not (folder / name).is_file():
            raise EngineError(f"no engine in {folder}: {name} is missing; make one with build.py")
    try:
        return EngineInfo.from_json(json.loads((folder / SIDECAR_FILE).read_text("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise EngineError(
            f"the sidecar {folder / SIDECAR_FILE} is damaged or of another samtrt version "
            f"({error}); build the engine again"
        ) from error


def check_engine(
    folder: str | Path, parameters_sha256: str | None = None, device: torch.device | None = None
) -> EngineInfo:
    """Reads the sidecar and refuses an engine that does not belong here.

    Args:
        parameters_sha256: the parameter set that the caller works with; None where any will do.
        device: the GPU that will run it; None for torch's current one.

    Raises:
        EngineError: another parameter set, library version or GPU than the engine was built for,
            or an engine file that was altered after its build.
    """
    folder = Path(folder)
    info = read_engine_info(folder)
    if parameters_sha256 is not None and parameters_sha256 != info.parameters_sha256:
        raise EngineError(
            f"the engine in {folder} was built from another parameter set "
            f"(sha256 {info.parameters_sha256[:12]}…, expected {parameters_sha256[:12]}…); "
            "build it again from these parameters"
        )
    installed = _library_version(info.library)
    if installed != info.library_version:
        found = f"{info.library} {installed}" if installed else f"no {info.library}"
        raise EngineError(
            f"the engine in {folder} was built by {info.library} {info.library_version}, and "
            f"{found} is installed here; build it again, or install that version"
        )
    if info.backend != "cpu":
        _check_gpu(folder, info, device)
    if sha256_of(folder / ENGINE_FILE) != info.engine_sha256:
        raise EngineError(
            f"the engine file in {folder} was altered after its build (its SHA-256 is not the "
            "recorded one); build it again"
        )
    return info


def _library_version(library: str) -> str | None:
    """The installed version of an engine's library; None where it is not installed."""
    if library == PACKED:
        return PACKED_VERSION
    try:
        return str(importlib.import_module(library).__version__)
    except (ImportError, OSError, RuntimeError):  # the latter two: a shared library is missing
        return None


def compute_capability(device: torch.device | None = None) -> str | None:
    """The GPU's compute capability, as "9.0"; None where torch finds no GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def can_execute(info: EngineInfo) -> bool:
    """Whether this machine has the device that the engine is for."""
    if info.backend == "cpu":
        return True
    found = compute_capability()
    return found is not None and info.compute_capability in (None, found)


def _check_gpu(folder: Path, info: EngineInfo, device: torch.device | None) -> None:
    found = compute_capability(device)
    if found is None:
        raise EngineError(
            f"the engine in {folder} is for the {info.backend} backend and needs an NVIDIA GPU, "
            "and torch finds none here; build one with --backend cpu"
        )
    if info.compute_capability not in (None, found):
        raise EngineError(
            f"the engine in {folder} was built for compute capability {info.compute_capability}, "
            f"and this GPU has {found}; build it again on this machine"
        )

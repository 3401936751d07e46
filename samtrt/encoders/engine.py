"""The engine folder: ``encoder.engine`` and its sidecar ``encoder.json``.

The sidecar says what the engine was made of and what it needs, and the loader refuses an engine
that does not belong to this library version, GPU or parameter set, or whose bytes were altered.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from annotated_types import Ge, Le
from pydantic import Field

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import CONFIG_FILE
from samtrt.encoders import ATTENTIONS, BACKENDS, PLUGINS, PRECISIONS
from samtrt.encoders.tensorrt.library import LIBRARIES, import_tensorrt
from samtrt.errors import EngineError
from samtrt.files import read_sealed, read_whole, sealing, sha256_of
from samtrt.hints import command
from samtrt.records import SHA256, STRICT, one_of, parse_record

ENGINE_FILE = "encoder.engine"
SIDECAR_FILE = "encoder.json"
SIDECAR_VERSION: Final = 1

# The library named by the engines that are packed parameters: the layout is this package's own.
PACKED = "samtrt"
PACKED_VERSION = "1"

MAX_BATCH_SIZE = 1024  # the largest that an engine may be for

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
        mean_mask_iou: mean IoU between the masks decoded from the two embeddings; None where there
            is no mask decoder.
        pictures: how many pictures were compared.
        worst_mask_iou: the smallest of those IoUs; None from versions that did not look.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    status: Annotated[str, one_of(PASSED, FAILED, SKIPPED, NOT_CHECKED)]
    relative_l2: float | None = None
    mean_mask_iou: float | None = None
    pictures: int = 0
    worst_mask_iou: float | None = None

    def __str__(self) -> str:
        if self.relative_l2 is None:
            return self.status
        if self.mean_mask_iou is None:
            return (
                f"{self.status}: output off by {self.relative_l2:.3%} (relative L2), "
                f"{self.pictures} pictures"
            )
        worst = f"worst {self.worst_mask_iou:.4f}, " if self.worst_mask_iou is not None else ""
        return (
            f"{self.status}: embedding off by {self.relative_l2:.3%} (relative L2), "
            f"mean mask IoU {self.mean_mask_iou:.4f}, {worst}{self.pictures} pictures"
        )


_LINEAR = r"^\d{1,4}\.(attn\.(qkv|proj)|mlp\.lin[12])$"


@dataclass(frozen=True)
class Fp8Record:
    """How an FP8 engine came to its numbers.

    Attributes:
        linears: how many linear layers the encoder's blocks have.
        fp16_linears: those that stayed in fp16, as ``7.mlp.lin2``, by block.
        automatic: whether they were chosen by what each costs in accuracy, or by hand.
        calibration_sha256: SHA-256 of the pictures that the scales are from, in the model's frame.
        errors: what each linear alone, in FP8, moves the embedding by (relative L2) on these; empty
            where nothing was to be chosen.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    linears: Annotated[int, Ge(4), Le(4096)]
    fp16_linears: tuple[Annotated[str, Field(pattern=_LINEAR)], ...]
    automatic: bool
    calibration_sha256: Annotated[str, SHA256]
    errors: dict[Annotated[str, Field(pattern=_LINEAR)], float] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = self.fp16_linears
        if not kept:
            return f"all {self.linears} linear layers in e4m3"
        count = f"{len(kept)} of {self.linears} linear layers stay in fp16"
        how = "what they cost in accuracy" if self.automatic else "as asked for"
        return f"{count} ({how}): {', '.join(kept)}"


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
        plugins: one of ``PLUGINS``: which layers of a TensorRT engine are our kernels.
        plugins_sha256: of the sources of the plugins' library; None where they need none.
        build_seconds: wall time of the build without the parity gate.
        parity: the parity gate's result.
        note: what a user must know of the parameters (``Parameters.note``).
        fp8: of an engine in fp8.
        engine_sha256: SHA-256 of the engine file.
        version: of this record.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    backend: Annotated[str, one_of(*BACKENDS)]
    config: EncoderConfig
    precision: Annotated[str, one_of(*PRECISIONS)]
    max_batch_size: Annotated[int, Ge(1), Le(MAX_BATCH_SIZE)]
    parameters_sha256: Annotated[str, SHA256]
    library: Annotated[str, one_of(*LIBRARIES, PACKED)] = PACKED
    library_version: Annotated[str, Field(pattern=r"^[\w.+-]{1,64}$")] = PACKED_VERSION
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")] | None = None
    attention: Annotated[str, one_of(*ATTENTIONS)] | None = None
    plugins: Annotated[str, one_of(*PLUGINS)] = "none"
    plugins_sha256: Annotated[str, SHA256] | None = None
    build_seconds: float = 0.0
    parity: ParityResult = ParityResult(NOT_CHECKED)
    note: str = ""
    fp8: Fp8Record | None = None
    engine_sha256: Annotated[str, SHA256] = ""
    version: Literal[1] = SIDECAR_VERSION

    def __post_init__(self) -> None:
        if (self.backend == "tensorrt") != (self.library in LIBRARIES):
            raise ValueError(f"library {self.library} for the {self.backend} backend")
        if (self.precision == "fp8") != (self.fp8 is not None) or (
            self.fp8 is not None and (self.backend, self.compute_capability) != ("cuda", "9.0")
        ):
            raise ValueError(f"precision {self.precision} without what belongs to it")
        if self.plugins != "none" and self.backend != "tensorrt":
            raise ValueError(f"plugins for the {self.backend} backend")

    @property
    def content(self) -> dict[str, Any]:
        """What a packed engine's own file says too: all that its output depends on."""
        content: dict[str, Any] = {
            "backend": self.backend,
            "config": self.config.to_json(),
            "precision": self.precision,
            "max_batch_size": self.max_batch_size,
            "parameters_sha256": self.parameters_sha256,
            "note": self.note,
        }
        if self.fp8 is not None:
            content["fp16_linears"] = list(self.fp8.fp16_linears)
        return content

    def summary(self) -> str:
        """What a person wants to know after a build, a line each."""
        lines = [
            f"engine      {self.backend}, {self.precision}, batch 1…{self.max_batch_size}",
            f"library     {self.library} {self.library_version}"
            + (f", plugins: {self.plugins}" if self.plugins != "none" else ""),
            f"build time  {self.build_seconds:.1f} s",
            f"parity      {self.parity}",
        ]
        if self.fp8 is not None:
            lines.append(f"fp8         {self.fp8}")
        return "\n".join([*lines, f"note        {self.note}"] if self.note else lines)

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json`` can write and ``parse_record`` reads back."""
        record = {**asdict(self), "config": self.config.to_json()}
        if self.fp8 is None:
            del record["fp8"]
        return record


@dataclass
class NewEngine:
    """An engine that is being written.

    Attributes:
        file: the engine file to fill.
        info: what the sidecar will say, set before the block ends; afterwards what it says, with
            the engine's hash.
    """

    file: Path
    info: EngineInfo = field(init=False)


@contextmanager
def writing_engine(folder: str | Path) -> Iterator[NewEngine]:
    """Writes an engine folder whole, or leaves an earlier one as it was.

    Raises:
        SamtrtError: the folder cannot be written, or another process is writing it.
    """
    folder = Path(folder)

    def is_sealed(path: Path) -> bool:
        try:
            return sha256_of(path) == _read_sidecar(folder).engine_sha256
        except (EngineError, OSError):
            return False

    with sealing(folder / ENGINE_FILE, folder / SIDECAR_FILE, is_sealed) as made:
        engine = NewEngine(made.path)
        yield engine
        engine.info = replace(engine.info, engine_sha256=sha256_of(made.path))
        made.record = engine.info.to_json()


def read_engine_info(folder: str | Path) -> EngineInfo:
    """Reads the sidecar of an engine folder; the engine itself is not touched.

    Raises:
        EngineError: the folder holds no engine, or its sidecar is damaged.
    """
    folder = Path(folder)
    if not (folder / ENGINE_FILE).is_file():
        raise _missing(folder, ENGINE_FILE)
    return _read_sidecar(folder)


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
    return read_engine(folder, parameters_sha256, device)[0]


def read_engine(
    folder: str | Path, parameters_sha256: str | None = None, device: torch.device | None = None
) -> tuple[EngineInfo, bytearray]:
    """``check_engine``, and the engine file's content that was checked.

    The content is in memory of its own: what becomes of the file afterwards does not matter.
    """
    folder = Path(folder)

    def read(engine_file: Path) -> tuple[EngineInfo, bytearray]:
        info = _read_sidecar(folder)
        _check_belongs(folder, info, parameters_sha256, device)
        if not engine_file.is_file():
            raise _missing(folder, ENGINE_FILE)
        try:
            content = read_whole(engine_file)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "it does not fit into memory"
            raise EngineError(f"cannot read the engine in {folder}: {reason}") from error
        if hashlib.sha256(content).hexdigest() != info.engine_sha256:
            raise EngineError(
                f"the engine file in {folder} was altered after its build (its SHA-256 is not "
                f"the recorded one); build it again with `{_build_command(folder)}`"
            )
        return info, content

    return read_sealed(folder / ENGINE_FILE, folder / SIDECAR_FILE, read)


def _read_sidecar(folder: Path) -> EngineInfo:
    path = folder / SIDECAR_FILE
    if not path.is_file():
        raise _missing(folder, SIDECAR_FILE)
    try:
        return parse_record(bytes(read_whole(path)), EngineInfo)
    except (ValueError, OSError) as error:
        raise EngineError(
            f"the sidecar {path} is damaged or of another samtrt version ({error}); "
            f"build the engine again with `{_build_command(folder)}`"
        ) from error


def _missing(folder: Path, name: str) -> EngineError:
    return EngineError(
        f"no engine in {folder}: {name} is missing; make one with `{_build_command(folder)}`"
    )


def _build_command(folder: Path, *options: str) -> str:
    """What builds the engine in a folder, again or for the first time."""
    if (folder / CONFIG_FILE).is_file():  # parameters were taken for an engine
        return command("build", "--params", folder, *options)
    near = folder.parent if (folder.parent / CONFIG_FILE).is_file() else "PARAMS"
    return command("build", "--params", near, "--output-dir", folder, *options)


def _check_belongs(
    folder: Path, info: EngineInfo, parameters_sha256: str | None, device: torch.device | None
) -> None:
    if parameters_sha256 is not None and parameters_sha256 != info.parameters_sha256:
        raise EngineError(
            f"the engine in {folder} was built from another parameter set "
            f"(sha256 {info.parameters_sha256[:12]}…, expected {parameters_sha256[:12]}…); "
            f"build it again from these parameters with `{_build_command(folder)}`"
        )
    installed = _library_version(info.library)
    if installed != info.library_version:
        found = f"{info.library} {installed}" if installed else f"no {info.library}"
        raise EngineError(
            f"the engine in {folder} was built by {info.library} {info.library_version}, and "
            f"{found} is installed here; install that version, or build it again with "
            f"`{_build_command(folder)}`"
        )
    if info.backend != "cpu":
        _check_gpu(folder, info, device)


def _library_version(library: str) -> str | None:
    """The installed version of an engine's library; None where it is not installed."""
    if library == PACKED:
        return PACKED_VERSION
    try:
        return str(import_tensorrt(library).__version__)
    except EngineError:
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
            "and torch finds none here; build one for this machine with "
            f"`{_build_command(folder, '--backend', 'cpu')}`"
        )
    if info.compute_capability not in (None, found):
        raise EngineError(
            f"the engine in {folder} was built for compute capability {info.compute_capability}, "
            f"and this GPU has {found}; build it again on this machine with "
            f"`{_build_command(folder)}`"
        )

"""The plugins' library: compiled from ``plugins/``, found again, and loaded into TensorRT."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samtrt.encoders.tensorrt import standalone
from samtrt.errors import EngineError
from samtrt.files import cache_folder, replacing, writing

SOURCES = Path(__file__).resolve().parent / "plugins"
VARIABLE = "SAMTRT_PLUGIN_LIBRARY"
OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
_WARNINGS = ("-Wall", "-Wextra", "-Wno-deprecated-declarations")  # NVIDIA deprecates what 8.6 has
_NAME = "libsamtrt_plugins.so"
_TENSORRT_HEADER, _CUDA_HEADER = "NvInferRuntime.h", "cuda.h"
_TENSORRT_FOLDERS = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)


def library_path() -> Path:
    """Where the library is: ``$SAMTRT_PLUGIN_LIBRARY``, or a place in the user's cache."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else cache_folder() / _NAME


def sources_sha256() -> str:
    """What the library says that it was compiled from."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".cpp", ".h"):
            content = source.read_bytes()
            digest.update(f"{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def build_library(
    output: Path,
    tensorrt_include: Path | None = None,
    cuda_include: Path | None = None,
    compiler: str = "g++",
) -> None:
    """Compiles the library; some ten seconds.

    Args:
        output: the file to write.
        tensorrt_include: folder of ``NvInferRuntime.h``, of the TensorRT that will load it; None
            for the usual places.
        cuda_include: folder of ``cuda.h`` (CUDA 12.0 or newer); likewise.
        compiler: ``g++``, or another that takes its options.

    Raises:
        EngineError: a header or the compiler is missing, or it refuses the sources.
        SamtrtError: the file cannot be written.
    """
    headers = header_folders(tensorrt_include, cuda_include)
    if shutil.which(compiler) is None:
        raise EngineError(f"the compiler {compiler} is not installed; name one with --compiler")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as target:
        _run(
            compiler,
            *OPTIONS,
            *_WARNINGS,
            f'-DSAMTRT_SOURCES_SHA256="{sources_sha256()}"',
            *(part for folder in headers for part in ("-isystem", str(folder))),
            *map(str, sorted(SOURCES.glob("*.cpp"))),
            "-ldl",
            "-o",
            str(target),
        )


def header_folders(
    tensorrt_include: Path | None = None, cuda_include: Path | None = None
) -> tuple[Path, Path]:
    """The folders of ``NvInferRuntime.h`` and of ``cuda.h``; see ``build_library``.

    Raises:
        EngineError: one is missing.
    """
    return (
        _header(_TENSORRT_HEADER, tensorrt_include, _TENSORRT_FOLDERS, "--tensorrt-include"),
        _header(_CUDA_HEADER, cuda_include, _cuda_folders(), "--cuda-include"),
    )


def load_library(trt: Any, sha256: str | None = None) -> str:
    """Has TensorRT load the library; gives the digest of its sources.

    Args:
        sha256: the digest that an engine needs; None for that of this version's sources.

    Raises:
        EngineError: there is none, or it is another one.
    """
    path = library_path()
    try:
        found = standalone.load_plugins(trt, path)
    except standalone.NetworkError as error:
        raise EngineError(f"{error}; ${VARIABLE} says where it is") from error
    if found != (sha256 or sources_sha256()):
        needed = "this version's" if sha256 is None else "those that the engine was built with"
        raise EngineError(
            f"the plugin library {path} was compiled from other sources than {needed}; compile it "
            "again with `samtrt build-plugins`, and build the engine again"
        )
    return found


def _header(name: str, folder: Path | None, usual: Iterable[str | Path], option: str) -> Path:
    for place in usual if folder is None else (folder,):
        if (Path(place) / name).is_file():
            return Path(place).resolve()
    where = "in none of the usual folders" if folder is None else f"not in {folder}"
    raise EngineError(f"{name} is {where}; name the folder that has it with {option}")


def _cuda_folders() -> list[Path]:
    """A toolkit's, or those of NVIDIA's packages."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    compiler = shutil.which("nvcc")
    homes += [str(Path(compiler).resolve().parent.parent)] if compiler else []
    folders = [Path(home) / "include" for home in homes if home]
    for package in map(Path, sys.path):
        folders += sorted((package / "nvidia").glob("cu*/include"), reverse=True)
    return folders


def _run(*command: str) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        raise EngineError(
            f"{command[0]} could not compile the plugins: "
            f"{'; '.join(errors[:3]) or f'exit status {result.returncode}'}"
        )

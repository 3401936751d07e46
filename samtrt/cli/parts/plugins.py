"""Compiles the library of the TensorRT plugins."""

import argparse
from pathlib import Path

from samtrt.cli.options import Options


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add(
        "--output", type=Path, help="the file to write (default: where engines look for it)"
    )
    options.add(
        "--tensorrt-include",
        type=Path,
        metavar="DIR",
        help="folder of NvInferRuntime.h, of the TensorRT that will load it (default: the usual)",
    )
    options.add(
        "--cuda-include",
        type=Path,
        metavar="DIR",
        help="folder of cuda.h, of CUDA 12.0 or newer (default: the usual)",
    )
    options.add("--compiler", default="g++", help="default: g++")


def run(arguments: argparse.Namespace) -> None:
    """Compiles, and prints where the library is."""
    from samtrt.encoders.tensorrt.plugin_library import VARIABLE, build_library, library_path

    output = arguments.output or library_path()
    build_library(output, arguments.tensorrt_include, arguments.cuda_include, arguments.compiler)
    print(f"written to  {output}")
    if output != library_path():
        print(f"engines     look for it in ${VARIABLE}, or in {library_path()}")

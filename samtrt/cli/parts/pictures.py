"""Which pictures a command works on, and where what it makes of them goes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtrt.cli.options import Options
from samtrt.errors import InputError

if TYPE_CHECKING:
    from samtrt.pictures.sources import PictureSource


def add_pictures(options: Options, flag: str, text: str, example: Path | None = None) -> None:
    """Adds the pictures that the command is about; on the console the flag may be left out."""
    if options.home is not None and example is not None:
        text = f"{text} (default: {example.as_posix()})"
    name = flag.removeprefix("--")
    options.add(flag, nargs="+", action=_Append, default=[], metavar="PICTURE", help=text)
    options.add(name, nargs="*", action=_Append, metavar="PICTURE", help=f"as {flag}")
    options.parser.set_defaults(subject=name)


def output_files(output: str, sources: "Sequence[PictureSource]", default: str) -> list[Path]:
    """The mask's file of each picture.

    One picture's is ``output`` itself, with .png added where it has no suffix. Several pictures'
    lie in the folder ``output``, named by the picture; so does one picture's where ``output`` is
    a folder.

    Args:
        output: as it was given; empty for ``default``, or for the current folder.

    Raises:
        InputError: a name that cannot be written, or one file for several pictures.
    """
    from samtrt.pictures.reading import check_png_output

    is_folder = output.endswith(("/", "\\")) or Path(output).is_dir()
    if len(sources) == 1 and not (output and is_folder):
        file = Path(output or default)
        files = [file if file.suffix else file.with_name(f"{file.name}.png")]
    else:
        if output.lower().endswith(".png") and not is_folder:
            raise InputError(
                f"--output {output} is one file, and there are {len(sources)} pictures; "
                "give a folder"
            )
        files, taken = [], set()
        for source in sources:
            name, number = f"{source.stem}_mask", 1
            while name.casefold() in taken:
                number += 1
                name = f"{source.stem}-{number}_mask"
            taken.add(name.casefold())
            files.append(Path(output, f"{name}.png"))
    for file in files:
        check_png_output(file)
    return files


class _Append(argparse.Action):
    """Adds to what the option and the positional of one name have set before."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values:
            setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])

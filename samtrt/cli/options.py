"""How a command takes its options: from the console, or from a script with examples beside it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from samtrt.encoders import BACKENDS
from samtrt.errors import InputError
from samtrt.files import check_output

SIZES = ("vit_b", "vit_l", "vit_h")

DEMO = Path("sam_models", "sam_demo")  # within the examples' folder
PARAMS = "parameter folder made by `samtrt convert`"
ENGINE = "engine folder made by `samtrt build`"


class Options:
    """The options of one command.

    Args:
        parser: takes them.
        home: a script's folder, whose ``sam_models``, ``images`` and ``outputs`` are the defaults;
            None for the console command, where a user names them.
    """

    def __init__(self, parser: argparse._ActionsContainer, home: Path | None = None) -> None:
        self.parser = parser
        self.home = home
        parser.set_defaults(home=home)

    def add(self, *flags: str, **settings: Any) -> None:
        """Adds an option as ``ArgumentParser.add_argument`` does."""
        self.parser.add_argument(*flags, **settings)

    def add_path(
        self,
        flag: str,
        text: str,
        example: Path | None = None,
        default: Path | None = None,
        **settings: Any,
    ) -> None:
        """Adds a path; its default is ``example`` in a script's folder, ``default`` elsewhere."""
        shown = default
        if self.home is not None and example is not None:
            default, shown = self.home / example, example
        if shown is not None:
            text = f"{text} (default: {shown.as_posix()})"
        self.add(flag, type=Path, default=default, help=text, **settings)

    def add_subject(self, flag: str, text: str, example: Path | None = None) -> "Options":
        """Adds the path that the command is about; on the console its flag may be left out.

        Returns:
            Takes further options that exclude this one.
        """
        group = Options(self.parser.add_mutually_exclusive_group(), self.home)
        group.add_path(flag, text, example)
        if self.home is None:
            name = flag.removeprefix("--")
            group.add(name, type=Path, nargs="?", action=_UnlessAbsent, help=f"as {flag}")
        return group

    def add_params(self) -> None:
        """Adds ``--params``, the subject of most commands."""
        self.add_subject("--params", PARAMS, DEMO)

    def add_backend(self, flag: str = "--backend", engine: str = "--engine") -> None:
        """Adds the choice of what runs an engine."""
        self.add(
            flag,
            choices=("auto", *BACKENDS),
            default="auto",
            help=f"what runs {engine} (default: auto, what it was built for)",
        )

    def add_engines(self, verb: str) -> None:
        """Adds ``--engine``, any number of folders that a report is about."""
        text = f"engine folders to {verb} as well, built from the same parameters"
        self.add("--engine", type=Path, nargs="+", default=[], metavar="DIR", help=text)

    def add_json(self) -> None:
        """Adds ``--json``, where a report's figures go."""
        self.add_output("--json", "write the record here as well")

    def add_output(self, flag: str, text: str) -> None:
        """Adds a file that is written at the end; one that cannot be is refused at once."""
        self.add(flag, type=Path, metavar="FILE", action=_Output, help=text)

    def add_pictures(self, flag: str, text: str) -> None:
        """Adds any number of pictures; the default is those beside a script."""
        pictures: list[Path] = []
        if self.home is not None:
            pictures = sorted((self.home / "images").glob("*.jpg"))
            text = f"{text} (default: those in images/)"
        self.add(flag, type=Path, nargs="+", default=pictures, metavar="FILE", help=text)


class _Output(argparse.Action):
    """Refuses a file that cannot be written, before anything is computed for it."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        check_output(values)
        setattr(namespace, self.dest, values)


class _UnlessAbsent(argparse.Action):
    """Keeps what the option of the same name has set where the positional is left out."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values is not None:
            setattr(namespace, self.dest, values)


def parse_arguments(
    command: ModuleType, home: Path, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses the options of a script that lies in ``home``."""
    parser = argparse.ArgumentParser(description=command.__doc__)
    command.add_options(Options(parser, home))
    return parse_line(parser, argv)


def parse_line(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses a command line; the subjects of a command that takes many may stand anywhere in it,
    where argparse wants them together."""
    arguments, rest = parser.parse_known_args(argv)
    subject: str = getattr(arguments, "subject", "")
    words = [word for word in rest if word == "-" or not word.startswith("-")]
    if len(words) < len(rest) or (words and not subject):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if words:
        setattr(arguments, subject, [*getattr(arguments, subject), *words])
    return arguments


class _ToStderr(logging.Handler):
    """Writes to what stderr is at that time: a bar on the screen has it printed above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Shows what the package logs: choices made for the user, and failures."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_ToStderr()])


def required(value: Path | None, flag: str, what: str) -> Path:
    """The value of an option that has no default on the console.

    Raises:
        InputError: it was not given.
    """
    if value is None:
        raise InputError(f"{flag} is not given; name {what}")
    return value

"""The console command ``samtrt``: from a checkpoint to masks, without the examples folder."""

import argparse
import sys

from samtrt import __version__
from samtrt.cli import (
    benchmark,
    build,
    compare,
    convert,
    evaluate,
    everything,
    export_decoder,
    models,
    serve,
)
from samtrt.cli import run as run_image
from samtrt.cli.options import Options, log_to_stderr, parse_line
from samtrt.cli.parts import plugins
from samtrt.console import run_script

COMMANDS = {
    "convert": convert,
    "build": build,
    "build-plugins": plugins,
    "export-decoder": export_decoder,
    "run": run_image,
    "everything": everything,
    "serve": serve,
    "models": models,
    "compare": compare,
    "benchmark": benchmark,
    "evaluate": evaluate,
}


def main() -> None:
    """Runs one command and ends the process with its exit status."""
    sys.exit(run_script(lambda: run(sys.argv[1:])))


def run(argv: list[str]) -> int | None:
    """Runs the command that the arguments name; returns its exit status.

    Raises:
        SamtrtError: whatever the command cannot do.
    """
    arguments = parse_line(make_parser(), argv)
    log_to_stderr()
    status: int | None = COMMANDS[arguments.command].run(arguments)
    return status


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``command`` is the name of the one chosen."""
    parser = argparse.ArgumentParser(prog="samtrt", description="Segment Anything, fast.")
    parser.add_argument("--version", action="version", version=f"samtrt {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").strip().rstrip(".")
        subparser = commands.add_parser(name, help=text[0].lower() + text[1:], description=text)
        command.add_options(Options(subparser))
    return parser

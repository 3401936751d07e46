"""Points and boxes as they are typed."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from samtrt.cli.options import Options
from samtrt.errors import InputError

if TYPE_CHECKING:
    from samtrt.decoders.prompts import Prompt


def add_prompts(options: Options, subject: str, example: str = "") -> None:
    """Adds ``--point``, ``--box``, and points and labels as lists.

    Args:
        subject: where words go that follow an option's numbers: the pictures.
        example: what is asked for where nothing is, for the help.
    """
    options.add(
        "--point",
        type=_point,
        action="append",
        default=[],
        metavar="X,Y[,LABEL]",
        help="a point in the picture's pixels; the label is 1 on the object (default) or 0 beside "
        f"it; may be given several times{example}",
    )
    options.add(
        "--point-coords",
        nargs="+",
        action=_numbers(subject),
        default=[],
        metavar="X Y",
        help="several points at once",
    )
    options.add(
        "--point-labels",
        nargs="+",
        action=_numbers(subject, whole=True),
        metavar="LABEL",
        help="for each point of --point-coords 1 or 0 (default: all 1)",
    )
    options.add(
        "--box",
        nargs="+",
        action=_numbers(subject, once=True),
        metavar="X0,Y0,X1,Y1",
        help="around the object; the numbers with commas or spaces between them",
    )


def given_prompt(arguments: argparse.Namespace) -> "Prompt":
    """The prompt of the options.

    Raises:
        InputError: no point and no box, or ones that cannot be.
    """
    from samtrt.decoders.prompts import Prompt

    coords, labels = list(arguments.point_coords), arguments.point_labels
    if arguments.point:
        if labels is None:
            labels = [1] * (len(coords) // 2)
        labels = [*labels, *(label for _, _, label in arguments.point)]
        coords += [value for x, y, _ in arguments.point for value in (x, y)]
    if arguments.box is not None and len(arguments.box) != 4:
        raise InputError(f"--box has {len(arguments.box)} numbers; expected X0,Y0,X1,Y1")
    return Prompt.from_numbers(coords, labels, arguments.box)


def nothing_asked(arguments: argparse.Namespace) -> bool:
    """Whether there is no point, no label and no box."""
    return not (
        arguments.point
        or arguments.point_coords
        or arguments.point_labels
        or arguments.box is not None
    )


def _point(text: str) -> tuple[float, float, int]:
    parts = text.split(",")
    try:
        x, y = map(float, parts[:2])
        (label,) = map(int, parts[2:]) if len(parts) > 2 else (1,)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no point; expected X,Y or X,Y,LABEL, as 800,460 or 800,460,0"
        ) from error
    return x, y, label


def _numbers(subject: str, whole: bool = False, once: bool = False) -> type[argparse.Action]:
    """An action that appends numbers; words behind them are pictures, so that these may stand
    anywhere in the line."""

    class Numbers(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: Sequence[str] | Any,
            option: str | None = None,
        ) -> None:
            words = list(values)
            numbers: list[float] = []
            while words and (found := _parsed(words[0], whole)) is not None:
                numbers += found
                words.pop(0)
            if not numbers or any(_parsed(word, False) is not None for word in words):
                kind = "whole numbers" if whole else "numbers"
                raise argparse.ArgumentError(self, f"expected {kind}, not {' '.join(values)}")
            before = getattr(namespace, self.dest)
            if once and before is not None:
                raise argparse.ArgumentError(self, "given twice; a picture is asked for one box")
            setattr(namespace, self.dest, [*(before or []), *numbers])
            setattr(namespace, subject, [*getattr(namespace, subject), *words])

    return Numbers


def _parsed(word: str, whole: bool) -> list[float] | None:
    """The numbers of a word, which commas may separate; None where it is something else."""
    try:
        return [(int if whole else float)(part) for part in word.rstrip(",").split(",")]
    except ValueError:
        return None

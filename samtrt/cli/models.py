"""Lists the models that are here, what was made of them, and where checkpoints come from."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from samtrt.cli.options import Options
from samtrt.hints import command

if TYPE_CHECKING:
    from samtrt.models.catalogue import KnownCheckpoint


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add("--json", action="store_true", help="print the list as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the list."""
    from samtrt.models.cache import kept, models_folder
    from samtrt.models.catalogue import (
        DEMO,
        META,
        checkpoints_folder,
        demo_checkpoint,
        demo_picture,
        find_known,
    )

    demo = demo_checkpoint()
    checkpoints: list[tuple[str, str, Path | None, KnownCheckpoint | None]] = [
        (DEMO, "a small SAM of synthetic scenes, to try things out", demo, None)
    ]
    checkpoints += [(known.name, known.what, find_known(known), known) for known in META]
    made = kept()
    if arguments.json:
        from samtrt.console import print_json

        print_json(
            {
                "checkpoints": [
                    {"name": name, "file": file and str(file), "url": known and known.url}
                    for name, _, file, known in checkpoints
                ],
                "kept": [
                    {
                        "folder": str(entry.folder),
                        "bytes": entry.bytes,
                        "engines": [f"{info.backend} {info.precision}" for info in entry.engines],
                    }
                    for entry in made
                ],
            }
        )
        return
    print("Checkpoints, by what --checkpoint takes:")
    for name, what, file, known in checkpoints:
        size = (
            f"{known.megabytes:,} MB"
            if known
            else f"{demo.stat().st_size / 1e6:.0f} MB"
            if demo
            else ""
        )
        print(f"  {name:<6} {what}, {size}")
        print(
            f"         {file or (known and 'not here; ' + known.download) or 'did not come along'}"
        )
    print(f"Files are looked for in the current folder and in {checkpoints_folder()};")
    print("any other SAM checkpoint is named by its path.")
    print(f"\nConverted and built, in {models_folder()}:")
    for entry in made:
        engines = (
            ", ".join(f"{info.backend} {info.precision}" for info in entry.engines) or "no engine"
        )
        print(f"  {entry.folder.name}: {engines}, {entry.bytes / 1e6:,.0f} MB")
    if not made:
        print("  nothing yet")
    elif entry := made[0]:
        print("A folder can be removed at any time; it is made again when it is needed.")
    if demo and (picture := demo_picture()):
        example = command("run", picture, "--checkpoint", DEMO, "--point", "800,460")
        print(f"\nTo try it:\n  {example}")

"""What a program can import from Meta's package."""

from collections.abc import Iterator
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

from samtrt.reports.peers import import_segment_anything


def modules() -> list[str]:
    """Meta's, by their names below the package."""
    package = import_segment_anything()
    prefix = f"{package.__name__}."
    return [
        "",
        *(part.name.removeprefix(prefix) for part in walk_packages(package.__path__, prefix)),
    ]


def of_meta(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == "segment_anything"


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names that a program may import from there: also those that the module has imported itself
    from its own package."""
    for name, thing in vars(module).items():
        if name.startswith("_") or isinstance(thing, ModuleType):
            continue
        if of_meta(thing) or name == "sam_model_registry":
            yield name, thing

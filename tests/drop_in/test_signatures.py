"""Every public name of Meta's package is here, and takes every call that Meta's takes."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

import pytest
from meta_names import modules, public

from samtrt.reports.peers import import_segment_anything

OURS = "samtrt.segment_anything"


def incompatible(theirs: Any, ours: Any) -> str | None:
    """Why some call that ``theirs`` takes is not taken by ``ours``, or means something else."""
    if isinstance(theirs, staticmethod) != isinstance(ours, staticmethod):
        return "only one of them is static"
    expected, found = (inspect.signature(unwrapped(f)).parameters for f in (theirs, ours))
    kinds = inspect.Parameter
    positional = [p for p in expected.values() if p.kind == kinds.POSITIONAL_OR_KEYWORD]
    taken = [p for p in found.values() if p.kind == kinds.POSITIONAL_OR_KEYWORD]
    starred = {p.kind for p in found.values()} & {kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD}
    if starred and {p.kind for p in expected.values()}.isdisjoint(starred):
        return "hides its arguments in a star"
    for place, parameter in enumerate(positional):
        if place >= len(taken) or taken[place].name != parameter.name:
            return f"argument {place} is not {parameter.name!r}"
    for name, parameter in expected.items():
        if name not in found:
            return f"no argument {name!r}"
        default = found[name].default
        if parameter.default is not kinds.empty and default is kinds.empty:
            return f"{name!r} has no default"
        if parameter.default is not kinds.empty and not same_default(default, parameter.default):
            return f"{name!r} is {default!r} by default, not {parameter.default!r}"
    for name in found.keys() - expected.keys():
        if found[name].default is kinds.empty and found[name].kind not in starred:
            return f"asks for {name!r}"
    return None


def unwrapped(function: Any) -> Any:
    return function.__func__ if isinstance(function, staticmethod) else function


def same_default(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list | tuple):
        return list(ours) == list(theirs)
    return ours == theirs


def members(theirs: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(theirs).items():
        if not name.startswith("_") or name == "__init__":
            yield name, member


def differences(theirs: Any, ours: Any, name: str) -> Iterator[str]:
    if not isinstance(theirs, type):
        if callable(theirs) and (why := incompatible(theirs, ours)):
            yield f"{name}: {why}"
        return
    if not isinstance(ours, type):
        yield f"{name} is no class"
        return
    for inner, member in members(theirs):
        if not any(inner in vars(base) for base in ours.__mro__):
            yield f"{name}.{inner} is missing"
        elif isinstance(member, FunctionType | staticmethod):
            mine = inspect.getattr_static(ours, inner)
            if why := incompatible(member, mine):
                yield f"{name}.{inner}: {why}"
        elif not isinstance(member, property) and getattr(ours, inner) != member:
            yield f"{name}.{inner} is {getattr(ours, inner)!r}, not {member!r}"


@pytest.mark.parametrize("module", modules())
def test_every_public_name_takes_metas_calls(module: str) -> None:
    theirs = import_module(f"segment_anything.{module}" if module else "segment_anything")
    ours = import_module(f"{OURS}.{module}" if module else OURS)
    found = []
    for name, thing in public(theirs):
        if not hasattr(ours, name):
            found.append(f"{name} is missing")
        else:
            found += differences(thing, getattr(ours, name), name)
    assert not found, "\n".join(found)
    assert module in ("modeling", "utils") or any(True for _ in public(theirs))


def test_the_registry_has_metas_names() -> None:
    package = import_segment_anything()
    ours = import_module(OURS)
    assert ours.sam_model_registry.keys() >= package.sam_model_registry.keys()


def example(a: int, b: int = 2, *, c: int = 3) -> None: ...


class TestTheComparison:
    """It can fail."""

    @pytest.mark.parametrize(
        ("ours", "why"),
        [
            (lambda a, c=3: 0, "argument 1 is not 'b'"),
            (lambda b, a=2, c=3: 0, "argument 0 is not 'a'"),
            (lambda a, b=2: 0, "no argument 'c'"),
            (lambda a, b, c=3: 0, "'b' has no default"),
            (lambda a, b=5, c=3: 0, "'b' is 5 by default"),
            (lambda a, b=2, *, c=3, d: 0, "asks for 'd'"),
            (lambda *args, **kwargs: 0, "star"),
        ],
    )
    def test_incompatible(self, ours: Any, why: str) -> None:
        assert why in (incompatible(example, ours) or "")

    def test_compatible(self) -> None:
        assert incompatible(example, lambda a, b=2, d=4, *, c=3, e=5: 0) is None
        assert incompatible(staticmethod(example), example) == "only one of them is static"
